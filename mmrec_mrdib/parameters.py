"""What values parameters may have, and which of RecBole's have an effect here: the rest is refused, in one line.

RecBole's own Config accepts what it does not understand, and many of its parameters are for other kinds of model than these. Whoever
sets one of those would wait for an effect that never comes.
"""

from __future__ import annotations

import codecs
import importlib.util
import math
from collections.abc import Iterable, Mapping
from typing import Any

from mmrec_mrdib.errors import ConfigError, did_you_mean
from mmrec_mrdib.evaluation import PER_USER, RECBOLE_ONLY

_SEQUENTIAL = "it is for sequential models, which are not run here"
_KNOWLEDGE = "it is for knowledge graphs, which are not read here"
_CONTEXT = "it is for context-aware models, which are not run here; general ones read users, items and modalities"
_DISTRIBUTED = "torchrun says which processes train one model (docs/distributed.md)"
# RecBole's parameters that nothing reads here, and what to do instead.
WITHOUT_EFFECT: dict[str, str] = {
    "config_file": "did you mean --config_files?",
    "config_files": "files are named on the command line (--config_files a.yaml b.yaml) or in the call (config_files=[...])",
    "checkpoint_dir": "all files of a run go to its folder; --runs says where",
    "worker": "batches are made in the training process",
    "state": "--quiet says less; in Python: logging.getLogger('mmrec_mrdib').setLevel(...)",
    "loss_decimal_place": "result.json has all losses in full",
    "transform": _SEQUENTIAL,
    "repeatable": "items of the training are never recommended again; --eval_mask says which are left out of rankings",
    **dict.fromkeys(("ITEM_LIST_LENGTH_FIELD", "LIST_SUFFIX", "MAX_ITEM_LIST_LENGTH", "POSITION_FIELD"), _SEQUENTIAL),
    **dict.fromkeys(
        ("HEAD_ENTITY_ID_FIELD", "TAIL_ENTITY_ID_FIELD", "RELATION_ID_FIELD", "ENTITY_ID_FIELD"), _KNOWLEDGE
    ),
    **dict.fromkeys(("alias_of_entity_id", "alias_of_relation_id", "kg_reverse_r"), _KNOWLEDGE),
    **dict.fromkeys(("entity_kg_num_interval", "relation_kg_num_interval"), _KNOWLEDGE),
    **dict.fromkeys(("discretization", "normalize_field", "normalize_all", "numerical_features", "seq_len"), _CONTEXT),
    "preload_weight": _CONTEXT,
    **dict.fromkeys(("alias_of_user_id", "alias_of_item_id"), "ids of other columns than users and items are not read"),
    **dict.fromkeys(("ip", "port", "offset"), _DISTRIBUTED),
}
# RecBole would pickle whole data sets for these; we never unpickle.
_PICKLED = ("save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path")
_SEVERAL_PROCESSES = ("nproc", "world_size")  # of one training; RecBole's values for none: 1 and -1
_SQUARED_OR_NOT = ("LightGCN", "SimpleX")  # RecBole's models that read `require_pow`
# Of RecBole's atomic files alone: the MMRec layout has one form.
_ATOMIC_ONLY = ("field_separator", "seq_separator", "load_col", "unload_col", "unused_col", "additional_feat_suffix",
                "RATING_FIELD", "TIME_FIELD", "LABEL_FIELD", "threshold")  # fmt: skip

_AT_LEAST_ONE = ("epochs", "train_batch_size", "eval_batch_size", "eval_step", "stopping_step", "embedding_size")
_SIZES_THAT_LEARN = ("train_batch_size", "stage_batch_size")
_AT_LEAST_ZERO = ("weight_decay", "metric_decimal_place", "n_layers")
_SEEDS = ("seed", "split_seed")
_MAY_BE_NONE = ("load_col", "train_neg_sample_args")
_COLUMNS = ("load_col", "unload_col", "unused_col")
_MAPPINGS = ("clip_grad_norm", "unload_col", "unused_col", "threshold", "val_interval", "modality_files")
_NAMES = ("benchmark_filename", "additional_feat_suffix")  # lists of them, or none
_KINDS: tuple[tuple[type, tuple[type, ...], str], ...] = (  # bool before int: it is one
    (bool, (bool,), "true or false"),
    (int, (int,), "a whole number"),
    (float, (int, float), "a number"),
    (str, (str, int, float), "text"),
    (dict, (dict,), "a mapping such as {key: value}"),
    (list, (list, tuple), "a list such as [a, b]"),
)


def shaped(key: str, value: Any, default: Any) -> Any:
    """'5,10' as [5, 10] and 'Recall,NDCG' as ['Recall', 'NDCG'] where a list is expected, one value as a list of it; a number as its text
    where text is expected."""
    if isinstance(default, str) and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if key.endswith("_inter_num_interval") and isinstance(value, list) and len(value) == 2:
        return f"[{value[0]},{value[1]}]"  # an interval without quotes, which YAML reads as a list
    if (
        key == "train_neg_sample_args"
        and isinstance(value, Mapping)
        and value.get("distribution", "") in (None, "none", "None")
    ):
        return None  # RecBole's own form of it, which its Config does not read
    if not isinstance(default, list) and key not in _NAMES:
        return value
    if isinstance(value, str):
        from mmrec_mrdib.config import parse_value

        return [parse_value(key, part.strip()) for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else value


def check(key: str, value: Any, default: Any, model: str, where: str = "") -> None:
    """One parameter by itself.

    Raises:
        ConfigError: it has no effect, or a value of another type than its default, or out of range.
    """
    name = f"{where}--{key}={value}"
    if key in _PICKLED and value:
        raise ConfigError(f"{name}: not supported: it stores pickled objects, never loaded here")
    if key in _SEVERAL_PROCESSES and value not in (None, 1, -1):
        raise ConfigError(
            f"{name}: processes are started by torchrun, which trains VBPR, LightGCN and FREEDOM so (docs/distributed.md): torchrun "
            "--nproc-per-node=2 run_mrdib.py --baseline ...; to use more cores for any model train several at a time: mmrec-mrdib "
            "leaderboard --jobs N"
        )
    why = WITHOUT_EFFECT.get(key)
    if key == "require_pow" and model not in _SQUARED_OR_NOT:
        why = f"only {' and '.join(_SQUARED_OR_NOT)} read it"
    if why is not None and value != default:
        raise ConfigError(f"{name}: no effect here: {why}")
    if value == "auto" and key in _SIZES_THAT_LEARN:
        raise ConfigError(
            f"{name}: the size of a batch changes what is learnt, so that a result would depend on the memory that a machine has free; "
            "give a number"
        )
    if value == "auto" and key == "eval_batch_size":
        return
    _check_type(name, key, value, default)
    _check_range(name, key, value)


def _check_type(name: str, key: str, value: Any, default: Any) -> None:
    """Refuse e.g. text where the default is a number. A default of None says nothing about the type."""
    given: Any = value  # checking against `wanted` makes an object of it for good
    if value is None:
        if default is not None and key not in _MAY_BE_NONE:
            raise ConfigError(f"{name}: expected a value; leave the parameter out for its default, {default!r}")
        return
    if key in _MAPPINGS:
        default = {}
    if key in _NAMES:
        default = [""]
    kind = next((kind for kind in _KINDS if isinstance(default, kind[0])), None)
    if kind is None:
        return
    _, wanted, expected = kind
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise ConfigError(f"--{key}={value!r}: expected {expected}, as in the default {default!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}: expected a finite number")
    if isinstance(default, list) and default:
        numbers, elements = all(isinstance(x, int | float) for x in default), list(given)
        good = [isinstance(x, (int, float) if numbers else str) and not isinstance(x, bool) for x in elements]
        if not all(good):
            raise ConfigError(f"{name}: expected a list of {'numbers' if numbers else 'names'}, as in {default!r}")


def _check_range(name: str, key: str, value: Any) -> None:
    if key in _AT_LEAST_ONE and isinstance(value, int) and value < 1:
        raise ConfigError(f"{name}: expected 1 or more")
    if key in _AT_LEAST_ZERO and value is not None and value < 0:
        raise ConfigError(f"{name}: expected 0 or more")
    if key in _SEEDS and not 0 <= value < 2**32:
        raise ConfigError(f"{name}: expected a whole number from 0 to {2**32 - 1}")
    if key == "learning_rate" and value <= 0:
        raise ConfigError(f"{name}: expected a number above 0")
    if key == "metrics":
        _check_metrics(value)
    if key == "encoding" and value is not None:
        try:
            codecs.lookup(value)
        except (LookupError, TypeError) as error:
            raise ConfigError(f"{name}: no such text encoding; expected utf-8, latin-1, cp1252, ...") from error
    if key == "rm_dup_inter" and value not in (None, "first", "last"):
        raise ConfigError(f"{name}: expected first or last")
    if key == "log_wandb" and value and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"{name}: wandb is not installed: pip install wandb; TensorBoard's files are written in any case"
        )
    if key == "topk" and (not value or any(not isinstance(k, int) or isinstance(k, bool) or k < 1 for k in value)):
        raise ConfigError(f"{name}: expected positive whole numbers, one or more, as in 5,10,20")
    if key in _COLUMNS and value is not None:
        for suffix, columns in value.items():
            if not isinstance(columns, list) or not all(isinstance(c, str) for c in columns):
                raise ConfigError(f"{name}: {suffix}: expected a list of columns, as in {{inter: [user_id, item_id]}}")
    if key == "train_neg_sample_args" and value is not None:
        _check_negatives(name, value)
    if key == "eval_args":
        _check_eval_args(name, value)
    if key == "clip_grad_norm" and value is not None:
        _keys(name, value, ("max_norm", "norm_type"))
        if not _is_number(value.get("max_norm")) or value["max_norm"] <= 0 or not _is_number(value.get("norm_type", 2)):
            raise ConfigError(
                f"{name}: expected {{max_norm: NUMBER}} with a number above 0, and norm_type if it is not 2"
            )
    if key == "learner" and str(value).lower() not in ("adam", "adamw", "sgd", "adagrad", "rmsprop"):
        raise ConfigError(f"{name}: expected adam, adamw, sgd, adagrad or rmsprop")


def _check_metrics(metrics: Iterable[Any]) -> None:
    ranking = PER_USER + RECBOLE_ONLY
    names = list(metrics)
    for metric in names:
        if str(metric).lower() not in ranking:
            raise ConfigError(
                f"--metrics: '{metric}' is not a metric of full ranking.{did_you_mean(str(metric), ranking)} "
                f"Known: {', '.join(ranking)}"
            )
    if not any(str(m).lower() in PER_USER for m in names):
        raise ConfigError(
            f"--metrics={names}: expected one or more of {', '.join(PER_USER)}: results are kept for each user, and the others are not of users"
        )


def _check_negatives(name: str, value: Mapping[str, Any]) -> None:
    _keys(name, value, ("distribution", "sample_num", "alpha", "dynamic", "candidate_num"))
    if value.get("distribution", "uniform") not in ("uniform", "popularity"):
        raise ConfigError(f"{name}: distribution: expected uniform or popularity")
    for key, least in (("sample_num", 1), ("candidate_num", 0)):
        number = value.get(key, least)
        if not isinstance(number, int) or isinstance(number, bool) or number < least:
            raise ConfigError(f"{name}: {key}: expected a whole number from {least}")
    if not isinstance(value.get("dynamic", False), bool):
        raise ConfigError(f"{name}: dynamic: expected true or false")
    if not _is_number(value.get("alpha", 1.0)):
        raise ConfigError(f"{name}: alpha: expected a number")


def _check_eval_args(name: str, value: Mapping[str, Any]) -> None:
    _keys(name, value, ("split", "order", "group_by", "mode"))
    mode = value.get("mode", "full")
    modes = set(map(str, mode.values())) if isinstance(mode, dict) else {str(mode)}
    if modes != {"full"}:
        raise ConfigError(f"{name}: mode: only full ranking is supported (mode: full)")
    if value.get("order", "RO") not in ("RO", "TO"):
        raise ConfigError(f"{name}: order: expected RO (random) or TO (by time)")
    if value.get("group_by", "user") not in ("user", "none", None):
        raise ConfigError(f"{name}: group_by: expected user or none")
    split = value.get("split", {"RS": [8, 1, 1]})
    shares = split.get("RS") if isinstance(split, dict) else None
    by_ratio = isinstance(shares, list) and len(shares) == 3 and all(_is_number(x) and x > 0 for x in shares)
    if not isinstance(split, dict) or len(split) != 1 or not (by_ratio or split.get("LS") == "valid_and_test"):
        raise ConfigError(
            f"{name}: split: expected {{RS: [0.8, 0.1, 0.1]}} (train, valid, test) or {{LS: valid_and_test}}"
        )


def check_together(config: Any, given: Mapping[str, Any], pairs: bool) -> None:
    """What parameters mean for each other.

    Args:
        config: complete.
        given: those that somebody set.
        pairs: whether the model is trained on pairs of a positive and a negative item.

    Raises:
        ConfigError: they contradict each other.
    """
    name, at, k = str(config["valid_metric"]).partition("@")
    metrics, ks = list(config["metrics"]), list(config["topk"])
    if name.lower() not in {m.lower() for m in metrics} or not at or not k.isdigit() or int(k) not in ks:
        raise ConfigError(
            f"--valid_metric={config['valid_metric']}: expected one of metrics={metrics} at one of topk={ks}, as in {metrics[0]}@{ks[0]}"
        )
    bigger = bool(config["valid_metric_bigger"])
    if given.get("valid_metric_bigger", bigger) != bigger:
        raise ConfigError(
            f"--valid_metric_bigger={given['valid_metric_bigger']}: no effect here: {name} says by itself which is better"
        )
    if "metric_decimal_place" in given and not any(m.lower() in RECBOLE_ONLY for m in metrics):
        raise ConfigError(
            f"--metric_decimal_place={given['metric_decimal_place']}: no effect here: metrics are kept in full "
            f"(only {', '.join(RECBOLE_ONLY)} are rounded)"
        )
    if "wandb_project" in given and not config["log_wandb"]:
        raise ConfigError(f"--wandb_project={given['wandb_project']}: no effect without --log_wandb=true")
    if pairs and given.get("threshold") is not None:
        raise ConfigError(
            f"--threshold={given['threshold']}: no effect here: {config['model']} is trained on pairs of items, not on labels"
        )
    if pairs and config["train_neg_sample_args"]["distribution"] == "none":
        raise ConfigError(
            f"--train_neg_sample_args={given.get('train_neg_sample_args')}: {config['model']} is trained on pairs of an item the user has and one "
            "it has not; expected {distribution: uniform} or {distribution: popularity}"
        )


def check_layout(config: Any, given: Mapping[str, Any], defaults: Mapping[str, Any], mmrec: bool, where: str) -> None:
    """What parameters mean for the layout of the data.

    Args:
        config, given: see `check_together`.
        defaults: what was there before anything was given.
        mmrec: whether the interactions are in the MMRec layout.
        where: the data set.

    Raises:
        ConfigError: another split than the one that is given, or parameters of RecBole's atomic files where there are none.
    """
    ordinary = {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "RO", "group_by": "user"}
    asked = {k: v for k, v in (given.get("eval_args") or {}).items() if k in ordinary and v != ordinary[k]}
    if asked and (mmrec or config["benchmark_filename"]):
        by = "x_label" if mmrec else "benchmark_filename"
        raise ConfigError(f"--eval_args={asked}: no effect here: the split of {where} is given, by {by}")
    for key in _ATOMIC_ONLY if mmrec else ():
        if given.get(key, defaults.get(key)) != defaults.get(key):
            raise ConfigError(
                f"--{key}={given[key]}: no effect here: it is for RecBole's atomic files, and {where} is in the MMRec layout"
            )
    ids = [config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]]
    if not mmrec and config["load_col"] is not None and not set(ids) <= set(config["load_col"].get("inter") or ()):
        raise ConfigError(
            f"--load_col={config['load_col']}: expected {{inter: [{', '.join(ids)}]}}, and more columns as needed"
        )


def _keys(name: str, value: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in value:
        if key not in known:
            raise ConfigError(f"{name}: unknown key '{key}'.{did_you_mean(str(key), known)} Known: {', '.join(known)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
