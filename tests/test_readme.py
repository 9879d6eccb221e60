"""The least backbone of docs/extend.md is real, and so are the commands of docs/data.md."""

import csv
import gzip
import json
import random
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from mmrec_mrdib import cli, registry
from mmrec_mrdib.testing.contract import build, gradients
from tests.conftest import ROOT


@pytest.mark.parametrize("variant", ["", "+MRdIB"])
def test_the_least_backbone_trains(tmp_path, monkeypatch, variant):
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), re.DOTALL).group(1)
    (tmp_path / "least_backbone.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.MODELS, "MeanFusion", "least_backbone:MeanFusion")
    (tmp_path / "data").mkdir()
    model, splits = build("MeanFusion" + variant, tmp_path / "data", embedding_size=None)
    model.train()
    loss, grads = gradients(model, next(iter(splits.train)))
    assert loss > 0 and len(grads) == sum(p.requires_grad for p in model.parameters())


def raw_files(folder):
    """Small files under the names that docs/data.md uses."""
    generator = random.Random(0)
    pairs = [(u, i) for u in range(30) for i in generator.sample(range(15), 8)]
    reviews = [{"reviewerID": f"A{u}", "asin": f"B{i:09}", "overall": 5, "unixReviewTime": u + i} for u, i in pairs]
    meta = [
        {"asin": f"B{i:09}", "title": f"toy number {i}", "categories": [["Baby", f"kind {i % 4}"]]} for i in range(15)
    ]
    for name, rows in (("reviews_Baby", reviews), ("meta_Baby", meta)):
        (folder / f"{name}.json.gz").write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    pictures = np.random.default_rng(0).random((14, 4096)).astype("<f4")  # one item has none
    (folder / "image_features_Baby.b").write_bytes(
        b"".join(f"B{i:09}".encode() + x.tobytes() for i, x in enumerate(pictures))
    )
    with (folder / "visits.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("patient", "drug", "date"), *((f"p{u}", f"d{i}", f"2024-01-{1 + i}") for u, i in pairs)]
        )
    for name in ("texts", "images"):
        with (folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("drug", "x", "y"), *((f"d{i}", i, -i) for i in range(15))])
    (folder / "datasets").mkdir()
    (folder / "new").mkdir()
    np.save(folder / "new" / "image_feat.npy", np.ones((2, 4096)))
    for name in ("image", "text"):
        (folder / "new" / f"{name}_ids.txt").write_text("n0\nn1\n")


def test_the_commands_of_the_data_page(tmp_path, monkeypatch, capsys):
    raw_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "data.md").read_text(), re.DOTALL)
    commands = [shlex.split(line) for block in blocks for line in block.splitlines()]
    assert len(commands) > 9 and all(c[0] == "mmrec-mrdib" for c in commands)
    codes = []
    for _, *arguments in commands:
        arguments = [name for a in arguments for name in (sorted(map(str, Path().glob(a))) if "*" in a else [a])]
        if arguments[0] == "train":
            arguments += ["--epochs=2", "--quiet"]
        if "--new-items" in arguments:  # as wide as the features that were made above
            width = np.load("datasets/baby/text_feat.npy").shape[1]
            np.save("new/text_feat.npy", np.ones((2, width)))
        codes.append(cli.main(arguments))
    # the first check tells that an item has no picture, as the page says
    assert codes == [0, 0, 1, *[0] * (len(codes) - 3)], capsys.readouterr()
    with Path("recs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["user"] == "A0" and rows[0]["item"].startswith("B0000")  # original ids
    with np.load("embeddings.npz") as arrays:
        assert set(arrays["item_ids"].tolist()) == {f"B{i:09}" for i in range(15)}
