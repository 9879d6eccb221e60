"""Every parameter has an effect or is refused, and wrong values are one line, whatever they are."""

import logging

import pytest
import torch

from mmrec_mrdib import cli, paths
from mmrec_mrdib.config import Config, known_keys
from mmrec_mrdib.errors import ConfigError, DataError, MRdIBError
from mmrec_mrdib.experiment.run import best_on_valid, make_config, prepare
from mmrec_mrdib.parameters import WITHOUT_EFFECT
from mmrec_mrdib.registry import model_class
from mmrec_mrdib.schema import TrainingSettings, read_yaml
from mmrec_mrdib.testing.toy import write_mmrec


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The same interactions in the MMRec layout ('toy') and as RecBole's atomic file ('atom')."""
    folder = tmp_path_factory.mktemp("data")
    write_mmrec(folder / "toy", users=12, items=10, dims={"a": 6, "b": 4})
    rows = [line.split("\t")[:2] for line in (folder / "toy" / "toy.inter").read_text().splitlines()[1:]]
    (folder / "atom").mkdir()
    text = "".join(f"{user}\t{item}\n" for user, item in rows)
    (folder / "atom" / "atom.inter").write_text("user_id:token\titem_id:token\n" + text)
    for m in "ab":
        (folder / "atom" / f"{m}_feat.npy").write_bytes((folder / "toy" / f"{m}_feat.npy").read_bytes())
        (folder / "atom" / f"{m}_ids.txt").write_text("".join(f"{n}\n" for n in range(10)))
    return folder


@pytest.fixture
def make(data):
    def call(model="VBPR", dataset="toy", **values):
        return make_config(model, dataset, values={"data_path": str(data), **values})

    return call


WRONG = (None, [], {}, -1, "x", "[x, 2]")


@pytest.mark.parametrize(("model", "dataset"), [("VBPR+MRdIB (paper)", "toy"), ("SOIL", "toy"), ("BPR", "atom")])
def test_no_value_of_any_parameter_ends_in_a_traceback(data, model, dataset):
    ours = paths.properties_dir()
    keys = set(known_keys()) | {"backbone"}
    files = {"VBPR+MRdIB (paper)": ("plugin/MRdIB.yaml", "model/VBPR.yaml"), "SOIL": ("model/SOIL.yaml",), "BPR": ()}[
        model
    ]
    keys |= {key for file in files for key in read_yaml(ours / file)}
    accepted = 0
    for key in sorted(keys - {"data_path"}):
        for value in WRONG:
            try:
                config = make_config(model, dataset, values={"data_path": str(data), key: value})
                TrainingSettings.from_config(config)
                splits = prepare(config)
                model_class(config["model"])(config, splits.parts[0])
                accepted += 1
            except MRdIBError as error:
                assert "\n" not in str(error) and len(str(error)) > 20, (key, value, str(error))
            except Exception as error:
                raise AssertionError(f"{key}={value!r}") from error
    assert 30 < accepted < 120  # "" where None or a name is a value: not everything is refused


@pytest.mark.parametrize("key", sorted(WITHOUT_EFFECT))
def test_what_nothing_reads_is_refused(make, key):
    values = {"worker": 2, "state": "ERROR", "repeatable": True, "kg_reverse_r": True, "loss_decimal_place": 2}
    with pytest.raises(ConfigError, match=f"--{key}=.*no effect here"):
        make(**{key: values.get(key, "other")})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"config_file": "a.yaml"}, "did you mean --config_files"),
        ({"backbone": "MGCN"}, "unknown parameter 'backbone' for VBPR"),
        ({"model": "BPR"}, "--model=BPR: no effect here: VBPR is named already"),
        ({"dataset": "other"}, "no effect here: toy is named already"),
        ({"require_pow": True}, "only LightGCN and SimpleX read it"),
        ({"metric_decimal_place": 2}, "metrics are kept in full"),
        ({"valid_metric_bigger": False}, "Recall says by itself"),
        ({"wandb_project": "mine"}, "without --log_wandb"),
        ({"eval_args": "{split: {RS: [0.6, 0.2, 0.2]}}"}, "the split of .*toy is given, by x_label"),
        ({"eval_args": "{order: TO}"}, "given, by x_label"),
        ({"load_col": "{inter: [user_id]}"}, "is in the MMRec layout"),
        ({"field_separator": ","}, "is in the MMRec layout"),
        ({"metrics": "[]"}, "is not a metric|expected one or more"),
        ({"metrics": "ItemCoverage", "valid_metric": "ItemCoverage@20"}, "expected one or more of recall"),
        ({"topk": "0"}, "positive"),
        ({"topk": "[]"}, "positive"),
        ({"topk": "5,x"}, "list of numbers"),
        ({"seed": -1}, "whole number from 0"),
        ({"seed": 2**32}, "whole number from 0"),
        ({"split_seed": -1}, "whole number from 0"),
        ({"train_neg_sample_args": None}, "trained on pairs"),
        ({"train_neg_sample_args": "{distribution: None}"}, "trained on pairs"),
        ({"train_neg_sample_args": "{distribution: zipf}"}, "expected uniform or popularity"),
        ({"train_neg_sample_args": "{sample_nun: 2}"}, "unknown key 'sample_nun'.*sample_num"),
        ({"train_neg_sample_args": "{sample_num: 0}"}, "sample_num: expected a whole number from 1"),
        ({"eval_args": "{spilt: {RS: [8, 1, 1]}}"}, "unknown key 'spilt'.*split"),
        ({"eval_args": "{split: {RS: [0.8, 0.2]}}"}, "split: expected"),
        ({"eval_args": "{split: {RS: [0.8, 0.1, -0.1]}}"}, "split: expected"),
        ({"eval_args": "{order: XX}"}, "order: expected RO"),
        ({"eval_args": "{mode: {valid: full, test: uni100}}"}, "only full ranking"),
        ({"clip_grad_norm": 5}, "expected a mapping"),
        ({"clip_grad_norm": "{maxnorm: 5}"}, "unknown key 'maxnorm'.*max_norm"),
        ({"clip_grad_norm": "{}"}, "max_norm: NUMBER"),
        ({"weight_decay": -0.1}, "0 or more"),
        ({"learning_rate": ".nan"}, "finite"),
        ({"epochs": None}, "expected a value"),
        ({"encoding": "utf9"}, "no such text encoding"),
        ({"rm_dup_inter": "all"}, "first or last"),
        ({"device": "gpu"}, "expected auto, cpu or cuda"),
        ({"device": "cuda", "use_gpu": False}, "not with --use_gpu=False"),
        ({"gpu_id": "0,1"}, "one GPU"),
    ],
)
def test_contradictions_and_wrong_shapes(data, values, message):
    with pytest.raises(ConfigError, match=message):
        make_config("VBPR", "toy", values={"data_path": str(data), **values})


def test_a_given_split_is_given_in_benchmark_files_too(make):
    with pytest.raises(ConfigError, match="given, by benchmark_filename"):
        make(dataset="atom", benchmark_filename="train,valid,test", eval_args="{split: {RS: [0.6, 0.2, 0.2]}}")
    assert make(dataset="atom", eval_args="{split: {RS: [0.6, 0.2, 0.2]}}")["eval_args"]["split"] == {
        "RS": [0.6, 0.2, 0.2]
    }
    with pytest.raises(ConfigError, match=r"load_col.*expected \{inter: \[user_id, item_id\]\}"):
        make(dataset="atom", load_col="{inter: [user_id]}")


def test_another_backbone_than_the_one_named_is_refused(make, tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("backbone: MGCN\n")
    for config in (
        lambda: make("VBPR+MRdIB (paper)", backbone="MGCN"),
        lambda: make_config("VBPR+MRdIB (paper)", "ml-100k", 1, [file]),
    ):
        with pytest.raises(ConfigError, match="backbone=MGCN: no effect here: VBPR is named already"):
            config()
    file.write_text("worker: 4\n")
    with pytest.raises(ConfigError, match="--worker=4: no effect"):
        make_config("VBPR", "ml-100k", 1, [file])
    assert (
        make("VBPR+MRdIB (paper)", backbone="VBPR", worker=0)["backbone"] == "VBPR"
    )  # what says nothing else is no contradiction


def test_lists_without_brackets(make):
    config = make(topk="5,10", metrics="Recall,NDCG", valid_metric="NDCG@10", learning_rate_scheduler="0.9,20")
    assert config["topk"] == [5, 10] and config["metrics"] == ["Recall", "NDCG"]
    assert TrainingSettings.from_config(config).learning_rate_scheduler == (0.9, 20)
    one = make(topk=20, metrics="Recall")
    assert one["topk"] == [20] and one["metrics"] == ["Recall"]
    assert make("MultiDAE", mlp_hidden_size="32,16", train_neg_sample_args=None)["mlp_hidden_size"] == [32, 16]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_asking_for_one_is_told(make, caplog):
    assert make()["device"] == torch.device("cpu") and not caplog.records  # the default asks for nothing
    for values in ({"use_gpu": True}, {"gpu_id": 0}):
        caplog.clear()
        assert make(**values)["device"] == torch.device("cpu")
        assert [r.levelno for r in caplog.records] == [logging.WARNING] and "no GPU here" in caplog.text
    with pytest.raises(ConfigError, match="--device=cuda: PyTorch finds no GPU here"):
        make(device="cuda")
    make(device="cpu", use_gpu=True)
    caplog.clear()
    make(enable_scaler=True)
    assert "--enable_scaler: no effect without a GPU" in caplog.text


def test_gpus_are_counted_among_the_visible_ones(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert make(gpu_id=1)["device"] == torch.device("cuda", 1) and make()["device"] == torch.device("cuda", 0)
    assert make(device="cpu")["device"] == torch.device("cpu") == make(use_gpu=False)["device"]
    with pytest.raises(ConfigError, match="2 GPUs are visible; expected a number from 0 to 1"):
        make(gpu_id=2)
    import os

    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


@pytest.mark.parametrize(("key", "value"), [("clip_grad_norm", {"max_norm": 1e-9}), ("weight_decay", 0.5), ("shuffle", False),
                                            ("learner", "sgd"), ("eval_step", 2)])  # fmt: skip
def test_what_is_accepted_has_an_effect(make, tmp_path, key, value):
    shared = {"epochs": 2, "train_batch_size": 16, "embedding_size": 4, "reproducibility": True, "seed": 1}
    plain, other = (
        best_on_valid(make(**shared, **extra), tmp_path / "scratch").history for extra in ({}, {key: value})
    )
    assert [(e["losses"], e.get("valid")) for e in plain] != [(e["losses"], e.get("valid")) for e in other]


def test_a_folder_that_is_a_file_is_one_line(data, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--model", "VBPR", "--dataset", "toy", "--data_path", str(data), "--runs", str(tmp_path / "file")]
    for command in (["train", "--baseline"], ["tune", "--trials", "1"]):
        assert cli.main([*command, *arguments, "--epochs=1"]) == 2
        assert "error: " in (error := capsys.readouterr().err) and "Traceback" not in error and "file" in error


def test_the_data_set_is_recorded_where_it_is(data, monkeypatch):
    monkeypatch.chdir(data)
    assert Config("VBPR", "toy", config_dict={"data_path": "."})["data_path"] == str(data / "toy")
    with pytest.raises(DataError, match="no data set 'toy' in elsewhere"):
        Config("VBPR", "toy", config_dict={"data_path": "elsewhere"})
