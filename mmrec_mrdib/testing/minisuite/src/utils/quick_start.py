"""One training for each combination of what is searched."""

from itertools import product
from logging import getLogger

from utils.configurator import Config
from utils.dataloader import EvalDataLoader, TrainDataLoader
from utils.dataset import RecDataset
from utils.utils import dict2str, get_model, get_trainer, init_seed


def quick_start(model, dataset, config_dict, save_model=True, mg=False):
    config = Config(model, dataset, config_dict, mg)
    train, valid, test = RecDataset(config).split()
    train_data = TrainDataLoader(config, train, batch_size=config["train_batch_size"], shuffle=True)
    valid_data, test_data = (
        EvalDataLoader(config, part, additional_dataset=train, batch_size=config["eval_batch_size"])
        for part in (valid, test)
    )
    names = config["hyper_parameters"]
    for values in product(*(config[name] for name in names)):
        for name, value in zip(names, values):
            config[name] = value
        init_seed(config["seed"])
        train_data.pretrain_setup()
        built = get_model(config["model"])(config, train_data).to(config["device"])
        trainer = get_trainer()(config, built, mg)
        _, valid_result, test_result = trainer.fit(
            train_data, valid_data=valid_data, test_data=test_data, saved=save_model
        )
        getLogger().info("%s %s", dict2str(valid_result), dict2str(test_result))
        print(dict2str(test_result))
