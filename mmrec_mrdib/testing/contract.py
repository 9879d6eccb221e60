"""Contract tests that every backbone passes; inherit them with three lines:

class TestMyModel(ContractTests):
    model = "MyModel"
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from mmrec_mrdib.errors import MRdIBError
from mmrec_mrdib.experiment.run import is_staged, make_config, prepare
from mmrec_mrdib.registry import model_class, parameters, variant
from mmrec_mrdib.testing.toy import write_mmrec

DIMS = {"a": 12, "b": 8, "c": 5}


def build(model: str, folder: Path, modalities: int = 2, splits: Any = None, **values: Any) -> tuple[Any, Any]:
    """(model, splits) of a variant on a toy data set with the given number of modalities.

    Args:
        splits: what an earlier call gave for the same data; none: read anew.
    """
    if not (folder / "toy").is_dir():
        write_mmrec(folder / "toy", users=40, items=30, dims=DIMS)
    small = {"embedding_size": 8} if "embedding_size" in parameters(variant(model).root) else {}
    values = {"data_path": str(folder), "modalities": ",".join(list(DIMS)[:modalities]), **small, **values}
    values = {k: v for k, v in values.items() if v is not None}
    config = make_config(model, "toy", 1, values=values)
    splits = splits or prepare(config)
    torch.manual_seed(0)
    built = model_class(config["model"])(config, splits.parts[0])
    if is_staged(config):  # as it stands after the first stage
        built.freeze_backbone()
    return built, splits


_OFF = {"rate_weight": 0, "redundant_weight": 0, "unique_weight": 0, "synergy_weight": 0}
OFF: dict[str, dict[str, Any]] = {
    "+MRdIB (paper)": _OFF | {"sigma": "constant", "init_log_var": -200, "min_log_var": -200},
    "+MRdIB (joint)": _OFF,
    "+MRdIB": {},
    "+Content": {},
    "+Noise": {"z_noise": 0},
    "+Dropout": {"z_dropout": 0},
    "+L2": {"z_l2_weight": 0},
    "+Unimodal": {"unimodal_weight": 0},
    "+MG": {},
    "+Noise+Dropout+L2+Unimodal+MG": {"z_noise": 0, "z_dropout": 0, "z_l2_weight": 0, "unimodal_weight": 0},
}
"""Plug-in -> parameters under which a model with it, before a readout's weight is chosen, is the model without."""


def assert_off(plain: Any, batch: Any, variant: Any) -> None:
    """A variant under `OFF` has its host's parameters, loss, gradients and ranking, bit for bit, whatever both draw at random."""
    assert all(torch.equal(p, variant.core.get_parameter(n)) for n, p in plain.named_parameters())
    if not variant.frozen:
        steps = []
        for model in (plain, variant):
            torch.manual_seed(1)
            steps.append(gradients(model.train(), batch))
        (loss, grads), (variant_loss, variant_grads) = steps
        assert variant_loss == loss and grads
        inside = "backbone." * len(variant.plugins)
        assert all(torch.equal(variant_grads[inside + name], grad) for name, grad in grads.items())
    plain.eval(), variant.eval()
    for score in ("full_sort_predict", "predict"):
        theirs = getattr(plain, score)(batch)
        assert torch.equal(getattr(variant, score)(batch).reshape(theirs.shape), theirs)  # RecBole's lie flat


def gradients(model: Any, batch: Any) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by parameter name of a step."""
    model.zero_grad()
    loss = model.calculate_loss(batch)
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def in_float32(value: Any) -> Any:
    """Encoded or Embeddings with their half-precision tensors in float32."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {k: in_float32(v) for k, v in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: in_float32(getattr(value, f.name)) for f in dataclasses.fields(value)}
        )
    return value


@pytest.mark.parametrize("modalities", [1, 2, 3])
class ContractTests:
    """What holds for every backbone, for one, two and three modalities."""

    model: ClassVar[str]
    idle: ClassVar[tuple[str, ...]] = ()
    """How names of parameters begin that the plain model's loss does not reach; the plug-in's must."""
    at_least: ClassVar[int] = 1
    """Modalities that the model is defined for; with fewer it must refuse, in one line."""

    @pytest.fixture(autouse=True)
    def defined(self, request: pytest.FixtureRequest, modalities: int) -> None:
        if modalities < self.at_least and request.function.__name__ != "test_too_few_modalities_are_refused":
            pytest.skip(f"{self.model} needs {self.at_least} modalities")

    def test_too_few_modalities_are_refused(self, tmp_path: Path, modalities: int) -> None:
        if modalities >= self.at_least:
            assert len(build(self.model, tmp_path, modalities)[0].modalities) == modalities
            return
        with pytest.raises(MRdIBError, match=f"{self.at_least if self.at_least > 2 else 'two'} modalities"):
            build(self.model, tmp_path, modalities)

    @pytest.mark.parametrize("plugin", ["", "+MRdIB (paper)", "+MRdIB"])
    def test_every_parameter_learns(self, tmp_path: Path, modalities: int, plugin: str) -> None:
        model, splits = build(self.model + plugin, tmp_path, modalities)
        model.train()
        _, grads = gradients(model, next(iter(splits.train)))
        idle = () if plugin else self.idle
        names = [n for n, p in model.named_parameters() if p.requires_grad and not n.startswith(idle)]
        still = [n for n in names if n not in grads or not grads[n].abs().sum() > 0]
        assert names and not still
        if plugin == "+MRdIB":  # the backbone is trained already
            assert not [n for n in grads if n.startswith("backbone.")]

    def test_mixed_precision_is_close(self, tmp_path: Path, modalities: int) -> None:
        model, splits = build(self.model + "+MRdIB (paper)", tmp_path, modalities)
        model.train()
        batch = next(iter(splits.train))
        losses = []
        for enabled in (False, True):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = model.calculate_loss(batch)
            loss.backward()
            losses.append(loss.item())
        assert losses[1] == pytest.approx(losses[0], rel=0.05)

    def test_losses_are_in_full_precision_whatever_the_autocast(self, tmp_path: Path, modalities: int) -> None:
        """Under mixed precision embeddings may be halves; every loss is what it is in float32 of the same embeddings."""
        weighting = (
            "fixed" if self.idle else "auto"
        )  # of a loss that does not hold z there is nothing to balance against
        model, splits = build(
            self.model + "+MRdIB (paper)", tmp_path, modalities, weighting=weighting, synergy_weight=0.1
        )
        model.train()
        interaction = next(iter(splits.train))
        batch, state = model.backbone.batch(interaction), {k: v.clone() for k, v in model.state_dict().items()}
        with torch.autocast("cpu", torch.bfloat16):
            halves = model.forward_batch(batch)
        steps = []
        for enabled in (True, False):
            model.forward_batch = lambda batch, full=not enabled: tuple(map(in_float32, halves)) if full else halves
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                steps.append(model.step_loss(interaction))
            if enabled:
                steps[0].total.backward()
                assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
                model.load_state_dict(state)  # the moving averages of estimators, the automatic weights
        assert halves[0].rate is not None and {r.dtype for r in halves[0].rate.values()} == {torch.float32}
        for name, value in steps[1].parts.items():
            assert steps[0].parts[name].dtype == torch.float32
            torch.testing.assert_close(steps[0].parts[name], value, rtol=1e-6, atol=1e-8)

    def test_plugins_that_are_off_are_the_backbone(self, tmp_path: Path, modalities: int) -> None:
        plain, splits = build(self.model, tmp_path, modalities)
        batch = next(iter(splits.train))
        for plugin, values in OFF.items():
            assert_off(plain, batch, build(self.model + plugin, tmp_path, modalities, splits, **values)[0])

    @pytest.mark.parametrize("plugin", ["+MRdIB (paper)", "+MRdIB", "+Content"])
    def test_prediction_uses_means_and_agrees_with_itself(self, tmp_path: Path, modalities: int, plugin: str) -> None:
        model, _ = build(self.model + plugin, tmp_path, modalities)
        model.eval()
        users = torch.arange(1, model.n_users)
        batch = {model.USER_ID: users, model.ITEM_ID: users % (model.n_items - 1) + 1}
        off = model.full_sort_predict(batch)
        if model.rungs():
            model.choose(model.rungs()[-1], 1.0)
        scores = model.full_sort_predict(batch)
        assert torch.equal(scores, off) == (model.settings.readout == "none")
        torch.testing.assert_close(scores, model.full_sort_predict(batch), rtol=0, atol=0)
        pairs = scores.gather(1, batch[model.ITEM_ID][:, None]).squeeze(1)
        torch.testing.assert_close(model.predict(batch), pairs)
        if model.host_embeddings() is not None:
            emb = model.evaluation_embeddings()
            torch.testing.assert_close(emb.users[batch[model.USER_ID]] @ emb.items.T, scores)

    def test_whole_and_partial_encoding_agree(self, tmp_path: Path, modalities: int) -> None:
        model, splits = build(self.model, tmp_path, modalities)
        model.eval()
        items = model.batch(next(iter(splits.train))).items[:5]
        whole, part = model.encode_items(), model.encode_items(items)
        for m, z in part.z.items():
            torch.testing.assert_close(z, whole.z[m][items])
        assert part.items is items
