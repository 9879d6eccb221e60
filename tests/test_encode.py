"""Features from texts and pictures: tfidf-svd for real, pretrained encoders with tiny models made here."""

import importlib
import json

import numpy as np
import pytest

from mmrec_mrdib import cli
from mmrec_mrdib.data import encode
from mmrec_mrdib.errors import DataError


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    texts = ["red wine", "white wine", "red shoes", "", "green tea and wine"]
    tokens = [f"id{n}" for n in range(5)]
    (folder / "items.txt").write_text("\n".join(tokens) + "\n")
    records = [{"id": t, "title": x, "description": "of the house"} for t, x in zip(tokens, texts, strict=True)]
    (folder / "items.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def run(folder, *arguments):
    return cli.main(["data", "encode", str(folder), *map(str, arguments)])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_tfidf_svd(shop, capsys):
    assert run(shop, "--text", "title", "--encoder", "tfidf-svd", "--dims", 3) == 0
    assert "text: features of 5 of 5 items, 3 dimensions" in capsys.readouterr().out
    x = np.load(shop / "text_feat.npy")
    assert x.shape == (5, 3) and x.dtype == np.float32 and not x[3].any()
    assert unit(x[0]) @ unit(x[1]) > unit(x[1]) @ unit(x[2])  # wine and wine, wine and shoes
    about = json.loads((shop / "text_feat.json").read_text())
    assert about["encoder"] == "tfidf-svd" and about["fields"] == ["title"] and about["dims"] == 3
    assert set(about["made_with"]) == {"scikit-learn"}
    again = shop.parent / "again"
    shop.rename(again)
    assert (
        run(again, "--text", "title", "--encoder", "tfidf-svd", "--dims", 3, "--name", "t2", "--precision", "fp16") == 0
    )
    second = np.load(again / "t2_feat.npy")
    assert second.dtype == np.float16
    np.testing.assert_allclose(second, x, atol=1e-3)
    assert not list(again.glob(".*"))
    for name in ("items.txt", "items.jsonl"):  # saved by an editor of another system
        (again / name).write_bytes(b"\xef\xbb\xbf" + (again / name).read_bytes().replace(b"\n", b"\r\n"))
    assert run(again, "--text", "title", "--encoder", "tfidf-svd", "--dims", 3, "--name", "t3") == 0
    np.testing.assert_array_equal(np.load(again / "t3_feat.npy"), x)


@pytest.fixture(scope="session")
def sentence_model(tmp_path_factory):
    library = pytest.importorskip(
        "sentence_transformers", reason="sentence-transformers is not installed (extra 'text')"
    )
    from sentence_transformers import models
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("model")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "white", "wine", "shoes", "tea"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder / "bert")
    bert = models.Transformer(str(folder / "bert"))
    library.SentenceTransformer(modules=[bert, models.Pooling(16)], device="cpu").save(str(folder / "whole"))
    return folder / "whole"


def test_sentence_transformers(shop, sentence_model, capsys):
    assert run(shop, "--text", "title,description", "--encoder", sentence_model, "--batch-size", 2) == 0
    import sentence_transformers

    model = sentence_transformers.SentenceTransformer(str(sentence_model), device="cpu")
    texts = encode.item_texts(shop, ["title", "description"])
    assert texts[0] == "red wine of the house" and texts[3] == "of the house"
    np.testing.assert_allclose(np.load(shop / "text_feat.npy"), model.encode(texts), atol=1e-5)
    about = json.loads((shop / "text_feat.json").read_text())
    assert about["encoder"] == str(sentence_model) and about["made_with"]["sentence-transformers"]
    assert run(shop, "--text", "title", "--encoder", shop / "nothing") == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_a_model_with_pickled_weights_is_refused(shop, sentence_model, tmp_path, capsys):
    import shutil

    import torch

    folder = tmp_path / "pickled"
    shutil.copytree(sentence_model, folder)
    for weights in folder.rglob("model.safetensors"):
        torch.save({}, weights.with_name("pytorch_model.bin"))
        weights.unlink()
    assert run(shop, "--text", "title", "--encoder", folder) == 2
    assert "cannot be loaded" in capsys.readouterr().err and not list(shop.glob("*_feat.npy"))


def usable(name):
    """The package, or a skip: a torchvision for another build of PyTorch fails with a RuntimeError."""
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:
        pytest.skip(f"{name} is not installed for this PyTorch (extra 'image'): {error}")


@pytest.fixture
def pictures(shop, rng):
    image = pytest.importorskip("PIL.Image", reason="pillow is not installed (extra 'image')")
    folder = shop.parent / "pictures"
    folder.mkdir()
    for n, kind in ((0, "png"), (2, "jpg"), (4, "webp")):
        pixels = rng.integers(0, 255, (40, 30, 3), dtype=np.uint8)
        image.fromarray(pixels).save(folder / f"id{n}.{kind}")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_timm_folder(shop, pictures, tmp_path, capsys):
    timm = usable("timm")
    model, folder = timm.create_model("test_resnet", pretrained=False), tmp_path / "tiny"
    timm.models.save_for_hf(model, folder, safe_serialization=True)
    assert run(shop, "--images", pictures, "--encoder", folder, "--batch-size", 2) == 0
    assert "features of 3 of 5 items" in capsys.readouterr().out
    x = np.load(shop / "image_feat.npy")
    assert x.shape == (3, model.num_features) and (shop / "image_ids.txt").read_text().split() == ["0", "2", "4"]
    assert np.abs(x[0] - x[1]).max() > 1e-6
    model.eval().reset_classifier(0)
    import torch

    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    from PIL import Image

    pixels = transform(Image.open(pictures / "id0.png").convert("RGB"))[None]
    with torch.no_grad():
        np.testing.assert_allclose(x[0], model(pixels).flatten().numpy(), rtol=1e-3, atol=1e-5)
    (pictures / "id2.jpg").write_bytes(b"rubbish")
    assert run(shop, "--images", pictures, "--encoder", folder) == 2
    assert "id2.jpg: not a picture" in capsys.readouterr().err
    assert run(shop, "--images", pictures, "--encoder", tmp_path) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_torchvision_with_local_weights(shop, pictures, tmp_path, capsys):
    torchvision = usable("torchvision")
    usable("safetensors")
    from safetensors.torch import save_file

    model = torchvision.models.get_model("shufflenet_v2_x0_5", weights=None)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    encoder = f"torchvision:shufflenet_v2_x0_5:{tmp_path / 'weights.safetensors'}"
    assert run(shop, "--images", pictures, "--encoder", encoder) == 0
    assert np.load(shop / "image_feat.npy").shape == (3, 1024)
    assert set(json.loads((shop / "image_feat.json").read_text())["made_with"]) == {"torchvision", "torch"}
    assert run(shop, "--images", pictures, "--encoder", "torchvision:resnet9999") == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_an_interrupted_encoding_goes_on_where_it_was(tmp_path):
    calls = []

    def encoder(fail_at=None):
        def call(batch):
            if len(calls) == fail_at:
                raise KeyboardInterrupt
            calls.append(list(batch))
            return np.array([[float(x), 1.0] for x in batch])

        return encode.Encoder("numbers", {"here": "1"}, call)

    inputs = [str(n) for n in range(7)]
    with pytest.raises(KeyboardInterrupt):
        encode.encode_in_batches(tmp_path, "x", inputs, encoder(2), 2, "fp32")
    assert len(calls) == 2
    out = encode.encode_in_batches(tmp_path, "x", inputs, encoder(), 2, "fp32")
    assert calls == [["0", "1"], ["2", "3"], ["4", "5"], ["6"]] and out[:, 0].tolist() == list(range(7))
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        encode.encode_in_batches(tmp_path, "x", inputs, encoder(5), 2, "fp32")
    encode.encode_in_batches(tmp_path, "x", ["9", *inputs[1:]], encoder(), 2, "fp32")  # other inputs: from the start
    assert calls[5] == ["9", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--text", "tittle", "--encoder", "tfidf-svd"], "no item has 'tittle'; there are description, title"),
        (["--text", "title", "--encoder", "tfidf-svd", "--name", "../x"], "of letters, digits, - and _"),
        (["--images", "nowhere", "--encoder", "timm:resnet18"], "no such folder"),
        (["--images", ".", "--encoder", "timm:resnet18"], "no file is named after an item, as in id0.jpg"),
        (["--images", ".", "--encoder", "tfidf-svd"], "is for texts"),
        (["--text", "title", "--encoder", "tfidf-svd", "--dims", "0"], "must be 1 or more"),
        (["--text", "title", "--encoder", "tfidf-svd", "--name", "items"], "cannot be called 'items'"),
    ],
)
def test_mistakes(shop, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(shop.parent)
    assert run(shop, *arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert {p.name for p in shop.iterdir()} == {"items.txt", "items.jsonl"}


def test_separators_inside_a_text_end_no_line(shop):
    texts = ["a\u2028b", "c\x85d", "e", "f", "g"]
    records = [json.dumps({"id": f"id{n}", "title": t}, ensure_ascii=False) for n, t in enumerate(texts)]
    (shop / "items.jsonl").write_text("\n".join(records) + "\n")
    assert encode.item_texts(shop, ["title"]) == texts


def test_texts_that_do_not_belong_to_the_items(shop):
    lines = (shop / "items.jsonl").read_text().splitlines()
    for content, message in (
        ("\n".join([lines[1], lines[0], *lines[2:]]), "line 1"),
        ("\n".join(lines[:-1]), "line 5: 4 lines for 5 items"),
        ("{", "not JSON lines"),
        ("\n".join(json.dumps({"id": f"id{n}", "title": ""}) for n in range(5)), "are empty"),
    ):
        (shop / "items.jsonl").write_text(content)
        with pytest.raises(DataError, match=message):
            encode.item_texts(shop, ["title"])
    (shop / "items.jsonl").unlink()
    with pytest.raises(DataError, match="no such file"):
        encode.item_texts(shop, ["title"])
    with pytest.raises(DataError, match="no words"):
        encode.tfidf_svd(["", "a"], 3)
    with pytest.raises(DataError, match="two of each"):
        encode.tfidf_svd(["wine", "wine"], 3)
