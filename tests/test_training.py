"""Trainer and run folders: determinism, exact resumption, selection, records."""

import functools
import json
import signal
import threading

import numpy as np
import pytest
import torch

from mmrec_mrdib import __version__, cli, load_checkpoint, load_result, train
from mmrec_mrdib import trainer as trainer_module
from mmrec_mrdib.errors import CheckpointError, ConfigError, DataError, NonFiniteLossError
from mmrec_mrdib.evaluation import PER_USER, Popularity, RankingSplit, rank
from mmrec_mrdib.experiment import leaderboard, record
from mmrec_mrdib.experiment import run as run_module
from mmrec_mrdib.experiment.run import Interrupted, make_config, prepare
from mmrec_mrdib.registry import BASELINES, MODELS
from mmrec_mrdib.trainer import MRdIBTrainer

TOPK = {"topk": [2, 5], "valid_metric": "Recall@5", "train_batch_size": 64, "embedding_size": 8}
VBPR_REG = {"reg_weight": 0.01}


@pytest.fixture
def fit(toy, tmp_path):
    def call(model="VBPR+MRdIB (paper)", resume=False, runs="runs", **values):
        values = {"data_path": str(toy), "epochs": 6, "checkpoint_interval": 0, **TOPK, **values}
        if model.startswith("VBPR"):
            values |= VBPR_REG
        return train(model, "toy", 3, values=values, runs=tmp_path / runs, resume=resume)

    return call


def outcome(result):
    epochs = [{k: v for k, v in e.items() if "seconds" not in k} for e in result["epochs"]]
    return result["test"], result["best_epoch"], epochs


def test_a_seed_gives_the_same_run_twice_and_another_seed_another(fit, toy, tmp_path):
    first, second = fit(), fit(runs="again")
    assert outcome(first) == outcome(second)
    values = {"data_path": str(toy), "epochs": 6, **TOPK, **VBPR_REG}
    assert outcome(train("VBPR+MRdIB (paper)", "toy", 4, values=values, runs=tmp_path / "r")) != outcome(first)


def test_run_folder(fit):
    result = fit()
    folder = run_module.Path(result["folder"])
    assert folder.name.startswith("VBPR+MRdIB-paper-toy-3-")
    names = {"result.json", "per_user.npz", "best.pt", "log.txt", "curves.png", "tensorboard"}
    assert {p.name for p in folder.iterdir()} == names
    read = load_result(folder)
    assert read["versions"]["mmrec-mrdib"] == __version__ and read["code"] == [record.code(read["versions"])]
    assert read["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert read["device"] == (torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu")
    assert read["peak_memory_mb"] > 50 and read["seconds_per_epoch"] > 0 and read["eval_mask"] == "train"
    assert [e["epoch"] for e in read["epochs"]] == list(range(6))
    assert {"bpr", "l2", "rate", "redundant", "unique"} == set(read["epochs"][0]["losses"])
    assert {"rate/a", "mi/a-b", "unique/c"} <= set(read["epochs"][0]["logs"])
    valid = [e["valid"]["recall@5"] for e in read["epochs"]]
    assert read["best_epoch"] == int(np.argmax(valid)) and read["valid"]["recall@5"] == max(valid)
    with np.load(folder / "per_user.npz", allow_pickle=False) as users:
        means = dict(zip(users["metrics"].tolist(), users["values"].mean(0).tolist(), strict=True))
        assert len(users["users"]) == len(users["values"]) == read["data"]["interactions"][2]  # one test item a user
    assert means == pytest.approx(read["test"])
    assert list((folder / "tensorboard").glob("events*"))
    assert set(load_checkpoint(folder / "best.pt")) == {"model", "seed", "best_epoch", "config", "state_dict"}


# FREEDOM draws its graph anew each epoch, SOIL's learning rate depends on the epoch.
@pytest.mark.parametrize("model", ["VBPR+MRdIB (paper)", "FREEDOM", "SOIL+MRdIB (paper)"])
def test_an_interrupted_run_resumes_as_if_nothing_had_happened(fit, monkeypatch, tmp_path, model, caplog):
    caplog.set_level("INFO", "mmrec_mrdib")  # a command of another test may have set it, which is for its process
    fit = functools.partial(fit, model)
    whole = fit(runs="whole")
    epoch = MRdIBTrainer._train_epoch

    def interrupted(self, data, index, **kwargs):
        if index == 3:
            next(iter(data))  # in mid-epoch: the random streams have moved on
            torch.randn(10)
            raise KeyboardInterrupt
        return epoch(self, data, index, **kwargs)

    monkeypatch.setattr(MRdIBTrainer, "_train_epoch", interrupted)
    with pytest.raises(Interrupted, match="epochs 0 to 2 are saved"):
        fit()
    monkeypatch.undo()
    with pytest.raises(DataError, match="not complete"):
        load_result(next((tmp_path / "runs").glob(f"{model[:4]}*")))
    resumed = fit(resume=True)
    assert outcome(resumed) == outcome(whole)
    assert not (run_module.Path(resumed["folder"]) / "last.pt").exists()
    stamp = (run_module.Path(resumed["folder"]) / "result.json").stat().st_mtime_ns
    assert outcome(fit(resume=True)) == outcome(whole)  # complete: its result is used
    file = run_module.Path(resumed["folder"]) / "result.json"
    assert file.stat().st_mtime_ns == stamp and "other code" not in caplog.text
    assert not (file.parent / "code.txt").exists()
    file.write_text(json.dumps({**json.loads(file.read_text()), "code": ["0.0.1 0123456"]}))
    assert fit(resume=True)["code"] == ["0.0.1 0123456"] and "trained by other code (0.0.1 0123456" in caplog.text


def test_test_split_is_read_once_at_the_best_epoch(fit, monkeypatch):
    seen = []
    stock = MRdIBTrainer.rank

    def spy(self, split):
        seen.append(split.name)
        return stock(self, split)

    monkeypatch.setattr(MRdIBTrainer, "rank", spy)
    fit()
    assert seen == ["valid"] * 6 + ["test"]


def test_plateau_ends_training(fit, monkeypatch):
    """RecBole counts a tie as an improvement, and waits for one evaluation more than it is told; here only a better value counts, and
    three evaluations without are three."""
    result = fit(model="VBPR", learning_rate=1e-12, epochs=50, stopping_step=3)
    assert result["best_epoch"] == 0 and len(result["epochs"]) == 4
    assert len(fit(model="VBPR", learning_rate=1e-12, epochs=50, stopping_step=1)["epochs"]) == 2


# ItemCoverage is RecBole's: it must know of the training data also where no epoch is left to train
@pytest.mark.parametrize("end", [{"epochs": 4}, {"epochs": 50, "stopping_step": 3}])
def test_a_run_interrupted_at_its_very_end_resumes_to_the_same_result(fit, monkeypatch, end):
    values = {"model": "VBPR", "learning_rate": 1e-12, "metrics": "[Recall, ItemCoverage]", **end}
    whole = fit(runs="whole", **values)
    monkeypatch.setattr(run_module, "_finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        fit(**values)
    monkeypatch.undo()
    assert outcome(fit(resume=True, **values)) == outcome(whole)
    assert len(whole["epochs"]) == 4 and 0 < whole["test"]["itemcoverage@5"] <= 1


@pytest.mark.parametrize("model", [*MODELS, *(m for m in BASELINES if m != "ItemKNNCBF")])  # which is not trained
def test_mixed_precision_trains(toy, tmp_path, model):
    plug = {"weighting": "auto", "synergy_weight": 0.1} if model in MODELS else {}
    if model == "DAMRS":  # whose loss does not hold z
        plug["weighting"] = "fixed"
    values = {"data_path": str(toy), "epochs": 1, "train_batch_size": 64, "embedding_size": 8, **plug}
    losses = []
    for amp in (True, False):
        config = make_config(
            f"{model}+MRdIB (paper)" if plug else model, "toy", 3, values={**values, "enable_amp": amp}
        )
        losses.append(run_module.best_on_valid(config, tmp_path / str(amp)).history[0]["losses"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05, abs=1e-3)


@pytest.fixture
def popular(tmp_path):
    """A data_path with 'hand': ten users, everyone's next item is the most popular one that they do not have yet."""
    train = {u: [0] if u < 6 else [1] for u in range(10)} | {10: [0, 1, 2, 3, 4, 5], 11: [6, 7, 8, 9]}
    rows = [(u, i, 0) for u, items in train.items() for i in items]
    rows += [(u, 1 if u < 6 else 0, 1) for u in range(9)] + [(9, 9, 1)]  # item 0: seven times in train; item 1: five
    rows += [(u, 5, 2) for u in range(10)]
    (tmp_path / "hand").mkdir()
    lines = ["userID\titemID\trating\tx_label", *(f"{u}\t{i}\t1\t{label}" for u, i, label in rows)]
    (tmp_path / "hand" / "hand.inter").write_text("\n".join(lines) + "\n")
    np.save(tmp_path / "hand" / "a_feat.npy", np.eye(10, dtype=np.float32))
    return {"data_path": str(tmp_path), "topk": [1], "valid_metric": "Recall@1", "metrics": "[Recall, GiniIndex]"}


def test_a_model_below_popularity_is_told(popular, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    runs, hopeless = tmp_path / "runs", {"learning_rate": 1e-12, "epochs": 1}
    result = train("VBPR", "hand", 3, values=popular | hopeless, runs=runs)
    assert result["popularity"] == {"recall@1": pytest.approx(0.9)} and result["valid"]["recall@1"] < 0.5
    told = f"worse than popularity on valid: recall@1 {result['valid']['recall@1']:.4f} against 0.9000; usual causes: "
    assert told in caplog.text
    caplog.clear()
    monkeypatch.setattr(
        run_module, "popularity", lambda config, splits, ranks=None: {"recall@1": result["valid"]["recall@1"]}
    )
    train("VBPR", "hand", 3, values=popular | hopeless, runs=runs)  # as good as popularity
    assert "best epoch 0" in caplog.text and "worse than popularity" not in caplog.text


def test_early_stopping_waits_for_a_run_to_begin(popular, tmp_path, monkeypatch):
    hopeless = popular | {"learning_rate": 1e-12, "epochs": 50, "stopping_step": 2}

    def evaluations():
        config = make_config("BPR", "hand", 3, values=hopeless)
        return len(run_module.best_on_valid(config, tmp_path).history)

    waited = evaluations()
    monkeypatch.setattr(
        run_module, "popularity", lambda config, splits, ranks=None: {"recall@1": -1.0}
    )  # better than that at once
    assert waited == evaluations() + 4 * 2 - 1 < 50  # the first evaluation is an improvement either way


def test_epochs_between_evaluations(fit):
    result = fit(eval_step=2)
    assert ["valid" in e for e in result["epochs"]] == [False, True] * 3
    assert result["best_epoch"] in (1, 3, 5) and (run_module.Path(result["folder"]) / "curves.png").is_file()


def test_variant_sees_the_batches_of_the_backbone(toy):
    def batches(model):
        config = make_config(model, "toy", 3, values={"data_path": str(toy), **TOPK})
        return [b["neg_item_id"] for b in prepare(config).train]

    for a, b in zip(batches("VBPR"), batches("VBPR+MRdIB (paper)"), strict=True):
        assert torch.equal(a, b)


def test_one_step_is_a_hand_written_adam_step(toy, tmp_path):
    config = make_config("VBPR", "toy", 3, values={"data_path": str(toy), **TOPK})
    splits = prepare(config)
    model = run_module.registry.model_class("VBPR")(config, splits.parts[0])
    trainer = MRdIBTrainer(config, model, tmp_path)
    before = model.users.detach().clone()
    batch = next(iter(splits.train))
    gradient = torch.autograd.grad(model.calculate_loss(batch), model.users)[0]
    trainer._train_epoch([batch], 0)
    expected = before - 0.001 * gradient / (gradient.abs() + 1e-8)  # the first step of Adam
    torch.testing.assert_close(model.users.detach(), expected, rtol=1e-4, atol=1e-7)


def test_non_finite_loss_names_the_term(fit, monkeypatch):
    from mmrec_mrdib.mrdib import terms

    monkeypatch.setattr(terms, "rate", lambda kl, present=None: kl.sum() * float("nan"))
    with pytest.raises(NonFiniteLossError, match=r"rate.*in epoch 0, batch 0"):
        fit()


def breaks_at(monkeypatch, epoch, what):
    """Training goes wrong in the given epoch, by its loss or by what its last step does to the parameters."""
    stock = MRdIBTrainer._train_epoch

    def train_epoch(self, data, index, **kwargs):
        if index == epoch and what == "loss":
            monkeypatch.setattr("mmrec_mrdib.models.vbpr.bpr", lambda margins: margins.mean() * float("nan"))
        if index == epoch and what == "parameters":
            next(iter(self.model.parameters())).register_post_accumulate_grad_hook(
                lambda p: setattr(p, "grad", p.grad * float("inf"))
            )
        return stock(self, data, index, **kwargs)

    monkeypatch.setattr(MRdIBTrainer, "_train_epoch", train_epoch)


@pytest.mark.parametrize("what", ["loss", "parameters"])
def test_what_diverges_late_keeps_its_best_epoch(fit, monkeypatch, what):
    fit = functools.partial(
        fit, "VBPR", stopping_step=50, train_batch_size=4096
    )  # one batch: nothing comes after its step
    good = fit(epochs=3, runs="good")
    breaks_at(monkeypatch, 3, what)
    result = fit(epochs=6)
    assert result["state"] == "diverged at epoch 3" and "NaN or infinite" in result["error"]
    assert outcome(result) == outcome(good) and good["state"] == "complete"
    folder = run_module.Path(result["folder"])
    assert load_result(folder)["state"] == "diverged at epoch 3" and not (folder / "last.pt").exists()
    assert {"best.pt", "per_user.npz", "curves.png"} <= {p.name for p in folder.iterdir()}
    monkeypatch.undo()
    assert fit(epochs=6, resume=True)["state"] == "diverged at epoch 3"  # as it would again


def test_a_diverged_run_is_told_by_the_exit_code_and_fails_on_a_board(fit, toy, tmp_path, monkeypatch, capsys):
    breaks_at(monkeypatch, 2, "loss")
    arguments = [f"--{k}={v}" for k, v in ({"data_path": toy, "epochs": 6, **TOPK, **VBPR_REG}).items()]
    command = [
        "train",
        "--model",
        "VBPR",
        "--dataset",
        "toy",
        "--baseline",
        "--seeds",
        "3",
        "--runs",
        str(tmp_path / "runs"),
    ]
    assert cli.main([*command, *arguments]) == 1
    told = capsys.readouterr()
    assert "error: VBPR, seed 3: diverged at epoch 2 (loss term bpr became NaN" in told.err and "recall@5" in told.out
    monkeypatch.undo()
    payload = {
        "kind": "train", "model": "VBPR", "dataset": "toy", "seed": 3, "config_files": [], "runs": str(tmp_path / "runs"),
        "values": {"data_path": str(toy), "epochs": 6, **TOPK, **VBPR_REG}, "fresh": False, "only_complete": False,
    }  # fmt: skip
    with pytest.raises(NonFiniteLossError, match="diverged at epoch 2"):
        leaderboard.work(payload)


def test_learning_rate_scheduler(fit, monkeypatch):
    rates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: rates.append(self.param_groups[-1]["lr"]) or step(self))
    fit(epochs=3, learning_rate=0.1, learning_rate_scheduler=[0.5, 2])
    per_epoch = len(rates) // 3
    assert rates == pytest.approx([0.1 * 0.5 ** (n // per_epoch / 2) for n in range(len(rates))])
    with pytest.raises(ConfigError, match="learning_rate_scheduler"):
        fit(learning_rate_scheduler=[2.0, 50])


def test_ctrl_c_takes_effect_between_batches():
    with pytest.raises(KeyboardInterrupt), trainer_module._between_batches() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()  # and nothing was raised
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)  # the second at once
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with trainer_module._between_batches() as interrupted:
        assert not interrupted()

    def elsewhere():  # only the main thread may set handlers
        with trainer_module._between_batches() as interrupted:
            outcome.append(interrupted())

    outcome = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert outcome == [False]


def test_checkpoints_that_need_unpickling_are_refused(tmp_path):
    marker = tmp_path / "executed"

    class Planted:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    torch.save({"state_dict": Planted()}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match="pickled objects, which are never loaded"):
        load_checkpoint(tmp_path / "bad.pt")
    (tmp_path / "noise.pt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "noise.pt")
    with pytest.raises(CheckpointError, match="no such"):
        load_checkpoint(tmp_path / "absent.pt")
    assert not marker.exists()


def test_eval_mask(toy):
    def masked(mask):
        values = {"data_path": str(toy), "eval_mask": mask}
        splits = prepare(make_config("VBPR", "toy", 1, values=values))
        return splits, sum(len(b.masked) for b in splits.test), sum(len(b.masked) for b in splits.valid)

    splits, train_only, valid_train = masked("train")
    _, history, valid_history = masked("history")
    valid_users = splits.parts[1].inter_feat["user_id"]
    assert history - train_only == torch.isin(valid_users, splits.test.users).sum() > 0 and valid_train == valid_history


def test_ranking_by_hand():
    """Two users, four items (ids 1-4); user 1 likes 2 and 3, has 1 in train; user 2 likes 4."""

    class Scores:
        def full_sort_predict(self, interaction):
            table = torch.tensor([[0.0] * 5, [99, 9, 1, 3, 2], [99, 4, 3, 2, 1]])
            return table[interaction["user_id"]].clone()

    users, items = torch.tensor([1, 1, 2]), torch.tensor([2, 3, 4])
    split = RankingSplit("test", users, items, [(torch.tensor([1]), torch.tensor([1]))], 3, 5, 100)
    ranking = rank(Scores(), split, PER_USER, [1, 3, 10], "user_id")
    # user 1: 3, 4, 2 -> hits at ranks 1 and 3; user 2: 1, 2, 3, 4 -> hit at rank 4
    per_user = {k: v.tolist() for k, v in ranking.per_user.items()}
    log = np.log2
    assert per_user["recall@3"] == [1.0, 0.0] and per_user["precision@3"] == pytest.approx([2 / 3, 0])
    assert per_user["ndcg@3"] == pytest.approx([(1 + 1 / log(4)) / (1 + 1 / log(3)), 0])
    assert per_user["map@3"] == pytest.approx([(1 + 2 / 3) / 2, 0]) and per_user["recall@1"] == [0.5, 0.0]
    assert per_user["hit@10"] == [1.0, 1.0] and per_user["mrr@10"] == [1.0, 0.25]
    assert per_user["precision@10"] == pytest.approx([0.2, 0.1])  # k stays k where there are fewer items


def test_popularity_by_hand():
    """Items 1-4 have 1, 2, 2 and 0 interactions in train; user 1 has 2 of them."""
    users, items = torch.tensor([1, 1, 2, 2, 3]), torch.tensor([2, 3, 1, 2, 3])
    split = RankingSplit("valid", torch.tensor([1, 2]), torch.tensor([4, 3]), [(users, items)], 4, 5, 100)
    popularity = Popularity(items, 5, "user_id")
    assert popularity.scores.argsort(descending=True).tolist() == [2, 3, 1, 0, 4]
    # user 1 has 2 and 3: 1, 4; user 2 has 1 and 2: 3, 4
    for width in (1, 4):
        ranking = rank(popularity, split, ["recall", "mrr"], [1, width], "user_id")
        assert ranking.per_user["recall@1"].tolist() == [0.0, 1.0]
    assert ranking.per_user["mrr@4"].tolist() == [0.5, 1.0]


def test_recbole_baseline_and_recbole_only_metrics(fit):
    result = fit(model="BPR", metrics="[Recall, ItemCoverage]", epochs=2)
    assert result["model"] == "BPR" and result["plugin"] is None
    assert 0 < result["test"]["itemcoverage@5"] <= 1 and 0 < result["test"]["recall@5"] < 1


def test_other_ways_of_sampling_are_recboles(fit):
    result = fit(model="BPR", epochs=1, train_neg_sample_args="{distribution: popularity}")
    assert 0 < result["test"]["recall@5"] < 1


def test_damaged_results(tmp_path):
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(DataError, match="not a result file"):
        load_result(tmp_path)
    (tmp_path / "result.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(DataError, match="missing: model"):
        load_result(tmp_path)


def test_what_does_not_change_the_result_does_not_change_the_folder(fit):
    in_memory, on_disk = fit(epochs=1), fit(epochs=1, features_on_disk=True)
    assert in_memory["folder"] == on_disk["folder"] and in_memory["test"] == on_disk["test"]
    assert fit(epochs=1, learning_rate=0.5)["folder"] != in_memory["folder"]
