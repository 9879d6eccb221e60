"""The README's backbone is real."""

import re

import pytest

from mmrec_mrdib import registry
from mmrec_mrdib.testing.contract import build, gradients
from tests.conftest import ROOT


@pytest.mark.parametrize("variant", ["", "+MRdIB"])
def test_the_backbone_of_the_readme_trains(tmp_path, monkeypatch, variant):
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "readme_backbone.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.MODELS, "MeanFusion", "readme_backbone:MeanFusion")
    (tmp_path / "data").mkdir()
    model, splits = build("MeanFusion" + variant, tmp_path / "data", embedding_size=None)
    model.train()
    loss, grads = gradients(model, next(iter(splits.train)))
    assert loss > 0 and len(grads) == len(list(model.parameters()))
