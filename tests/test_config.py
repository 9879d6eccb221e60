"""Strict keys, no argv, no eval; the registry and the property files agree."""

import pytest
import yaml

from mmrec_mrdib import general, paths, registry
from mmrec_mrdib.config import Config
from mmrec_mrdib.errors import ConfigError, DataError
from mmrec_mrdib.experiment.run import make_config
from mmrec_mrdib.schema import Loader, read_yaml
from mmrec_mrdib.testing.contract import build


def make(**values):
    return Config("VBPR", "ml-100k", overrides=values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rat", "0.1", "unknown parameter 'learning_rat'.*learning_rate"),
        ("embeding_size", "8", "embeding_size.*embedding_size"),
        ("rate_weight", "1", "unknown parameter 'rate_weight' for VBPR"),
        ("learning_rate", "fast", "expected a number"),
        ("learning_rate", "-1", "above 0"),
        ("epochs", "2.5", "expected a whole number"),
        ("epochs", "0", "expected 1 or more"),
        ("epochs", "true", "expected a whole number"),
        ("topk", "[0]", "positive"),
        ("metrics", "[Recal]", "metric"),
        ("metrics", "[GAUC]", "not a metric of full ranking"),
        ("valid_metric", "Recall@7", "valid_metric=Recall@7: expected one of"),
        ("valid_metric", "MRR@10", "valid_metric"),
        ("learner", "adamx", "expected adam, adamw"),
        ("eval_args", "{mode: uni100}", "full ranking"),
        ("save_dataset", "true", "pickled"),
        ("topk", "[5, 10", "not a valid YAML value"),
    ],
)
def test_refusals(key, value, message):
    with pytest.raises(ConfigError, match=message):
        make(**{key: value})


def test_values_are_never_evaluated(tmp_path):
    marker = tmp_path / "executed"
    config = make(NEG_PREFIX=f"open({str(marker)!r}, 'w')")
    assert not marker.exists() and config["NEG_PREFIX"].startswith("open(")


def test_the_command_line_of_the_host_program_is_ignored(monkeypatch):
    monkeypatch.setattr("sys.argv", ["host", "--learning_rate=7", "--nonsense=1"])
    assert make()["learning_rate"] == 0.001


def test_ranks_of_the_sources(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("learning_rate: 5e-4\nreg_weight: 1e-2\n")
    config = Config("VBPR", "ml-100k", [file], {"reg_weight": 0.5}, {"epochs": "7"})
    assert (config["learning_rate"], config["reg_weight"], config["epochs"]) == (0.0005, 0.5, 7)
    assert (config["stopping_step"], config["valid_metric"]) == (20, "Recall@20")


@pytest.mark.parametrize(
    ("content", "message"), [("a: [1", "line"), ("- 1", "expected 'key: value'"), (None, "no such file")]
)
def test_bad_config_files(tmp_path, content, message):
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        Config("VBPR", "ml-100k", [file])


def test_yaml_beside_the_data_is_read_and_checked(toy):
    file = toy / "toy" / "toy.yaml"
    file.write_text("modalities: [b]\n")
    assert Config("VBPR", "toy", config_dict={"data_path": str(toy)})["modalities"] == ["b"]
    file.write_text("modalitys: [b]\n")
    with pytest.raises(ConfigError, match=r"toy\.yaml: unknown parameter 'modalitys'.*modalities"):
        Config("VBPR", "toy", config_dict={"data_path": str(toy)})


def test_the_values_of_the_caller_do_not_change():
    values = {"eval_args": {"order": "RO"}, "train_neg_sample_args": {}}
    Config("BPR", "ml-100k", config_dict=values)
    assert values == {"eval_args": {"order": "RO"}, "train_neg_sample_args": {}}


def test_recboles_argument_lists_do_not_grow():
    from recbole.utils.argument_list import dataset_arguments

    before = list(dataset_arguments)
    make()
    assert dataset_arguments == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("VPBR", "Did you mean VBPR"),
        (
            "VBPR+Mrdip",
            r"no such plug-in or preset; write VBPR, or one of VBPR\+MRdIB, .*VBPR\+MRdIB \(paper\).*VBPR\+Content",
        ),
        ("VBPR+MRdIB (papr)", "no such plug-in or preset"),
        ("VBPR+plain", "no such plug-in or preset"),
        ("MRdIB", r"wraps a model: name it, as in --model=VBPR\+MRdIB"),
    ],
)
def test_unknown_models(model, message):
    with pytest.raises(ConfigError, match=message):
        make_config(model, "ml-100k")


@pytest.mark.parametrize(("name", "message"), [("ml-100", "Did you mean ml-100k"), ("../x", "one folder name")])
def test_unknown_datasets(name, message):
    with pytest.raises(DataError, match=message):
        make_config("VBPR", name)


def test_registry_files_and_properties_agree():
    files = {p.stem for p in (paths.PACKAGE / "models").glob("*.py")} - {"__init__", "base", "shared"}
    assert {m.lower() for m in registry.MODELS | registry.BASELINES} == files
    for name in registry.MODELS | registry.BASELINES:
        assert registry.model_class(name).__name__ == name
        assert (paths.properties_dir() / "model" / f"{name}.yaml").is_file()
    for file in paths.properties_dir().rglob("*.yaml"):
        assert isinstance(yaml.load(file.read_text(), Loader=Loader), dict), file


def test_presets_change_what_they_are_named_for_and_nothing_else():
    """All of them but 'paper', see tests/test_mrdib.py."""
    changes = {
        "mrdib-joint": {"training": "joint"},
        "mrdib-bottleneck": {"rate_weight": 0.1},
        "mrdib-noise": {"sigma": "constant", "init_log_var": -1.4},
        "mrdib-redundant": {"redundant_weight": 0.1},
        "mrdib-both": {"unique_weight": 1.0},
        "mrdib-unique": {"unique_weight": 1.0, "synergy_weight": 0.0},
        "mrdib-shuffled": {"content_control": "shuffle"},
        "content-shuffled": {"content_control": "shuffle"},
    }
    for kind, (plugin, preset) in registry.kinds().items():
        if preset is None or kind == "mrdib-paper":
            continue
        default, config = (
            make_config(registry.Variant("VBPR", plugin, name).name, "ml-100k") for name in (None, preset)
        )
        found = {k: v for k, v in config.internal_config_dict.items() if default.internal_config_dict.get(k) != v}
        assert found == changes[kind]


def test_search_spaces_name_parameters_and_values_that_are_valid(tmp_path):
    spaces = {p.stem: read_yaml(p) for p in (paths.properties_dir() / "search").glob("*.yaml")}
    ours = {*registry.MODELS, *registry.BASELINES, "MRdIB-paper"}
    assert ours | {"BPR", "ItemKNN", "EASE", "Pop", "NeuMF", "NGCF", "MultiVAE", "SimpleX"} <= set(spaces)
    assert set(spaces) - ours <= set(registry.recbole_models()) - set(registry.REFUSED)
    assert {name for name, space in spaces.items() if not space} == {"Pop", "Random"}
    _, splits = build("VBPR", tmp_path)  # the data of all of them
    for name, space in spaces.items():
        model = "VBPR+MRdIB (paper)" if name == "MRdIB-paper" else name
        defaults = make_config(model, "ml-100k")
        values = {"data_path": str(tmp_path)} | ({"embedding_size": 8} if name != "ItemKNNCBF" else {})
        for key, choices in space.items():
            if name in ours:  # what is known to do well can be found
                assert defaults[key] in choices, (name, key)
            assert len(choices) == len(set(choices)) > 1
            for choice in choices if name in ours else ():
                config = make_config(model, "toy", 1, values=values | {key: choice})
                general.build(config, splits.parts[0])  # an unknown key or a bad value would raise
        if name not in ours:  # these are slower to make: the ends of the ranges, at once
            for end in (0, -1):
                make_config(name, "ml-100k", values={key: choices[end] for key, choices in space.items()})


def test_recboles_models_are_found_without_importing_them():
    assert {"BPR", "LightGCN", "ItemKNN"} <= registry.recbole_models().keys()


@pytest.mark.parametrize("key", ["nproc", "world_size"])
def test_training_one_model_on_several_processes_is_refused(toy, key):
    values = {"data_path": str(toy)}
    with pytest.raises(ConfigError, match="leaderboard --jobs"):
        Config("VBPR", "toy", config_dict=values, overrides={key: "2"})
    Config("VBPR", "toy", config_dict=values, overrides={key: "1"})


def test_a_yaml_file_may_begin_with_a_mark(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbftopk: [5]\r\n")
    assert read_yaml(tmp_path / "x.yaml") == {"topk": [5]}


def test_intervals_are_text_where_they_are_no_yaml():
    assert make(user_inter_num_interval="[8,inf)")["user_inter_num_interval"] == "[8,inf)"
    assert make(item_inter_num_interval="[1,5];[7,9]")["item_inter_num_interval"] == "[1,5];[7,9]"
