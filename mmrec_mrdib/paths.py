"""Where things are: the shipped property files, the data sets, the cache; and how files are written whole."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from mmrec_mrdib.errors import DataError, did_you_mean

PACKAGE = Path(__file__).resolve().parent
BUILTIN_DATASETS = ("ml-100k",)


def properties_dir() -> Path:
    """`properties/` inside an installed wheel, else the one beside the package in a checkout."""
    inside = PACKAGE / "properties"
    return inside if inside.is_dir() else PACKAGE.parent / "properties"


def properties_of(module: str) -> Path:
    """The folder of property files for a class in this module: ours for ours; else `properties/` beside the module's file, or in the nearest
    package above it that has one. Nothing is imported."""
    top, *rest = module.split(".")
    if top in ("mmrec_mrdib", "recbole"):
        return properties_dir()
    if top == "__main__":
        file = getattr(sys.modules[top], "__file__", None)
        return (Path(file).parent if file else Path.cwd()) / "properties"
    spec = importlib.util.find_spec(top)
    if spec is None:
        return properties_dir()  # it cannot be loaded either, and that is told
    home = Path(spec.origin).parent if spec.origin else Path(next(iter(spec.submodule_search_locations or ["."])))
    places = [home.joinpath(*rest[:n]) / "properties" for n in reversed(range(max(len(rest), 1)))]
    return next((p for p in places if p.is_dir()), places[-1])


def recbole_dir() -> Path:
    """The folder of the installed RecBole, found without importing it."""
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise DataError("RecBole is not installed: pip install 'recbole>=1.2.0,<1.3'")
    return Path(spec.origin).parent


def cache_dir() -> Path:
    """Where derived data is kept: $MMREC_MRDIB_CACHE, else the user's cache folder."""
    base = os.environ.get("MMREC_MRDIB_CACHE")
    if base:
        return Path(base)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmrec-mrdib"


def find_dataset(name: str, data_path: str | os.PathLike[str] | None = None) -> Path:
    """The folder that holds `<name>.inter`.

    Searched: `<data_path>/<name>` alone when a data_path is given; otherwise `datasets/<name>` below the
    current folder, then beside the package, then RecBole's own copy of ml-100k.

    Raises:
        DataError: no such folder; the message lists what the searched folders do hold.
    """
    if Path(name).name != name or name in {"", ".", ".."}:
        raise DataError(f"--dataset={name}: a data set's name is one folder name, without '/'; use --data_path")
    if data_path is not None:
        roots = [Path(data_path)]
    else:
        roots = [Path.cwd() / "datasets", PACKAGE.parent / "datasets", recbole_dir() / "dataset_example"]
    for root in roots:
        if (root / name).is_dir():
            return root / name
    known = sorted({d.name for root in roots if root.is_dir() for d in root.iterdir() if _has_interactions(d)})
    where = roots[0] if data_path is not None else "datasets/ or among the built-in ones"
    from mmrec_mrdib.data import fetch

    public = f" 'mmrec-mrdib data get {name}' fetches it." if name in fetch.sources() else ""
    raise DataError(
        f"no data set '{name}' in {where}.{did_you_mean(name, known)} Available: {', '.join(known) or 'none'}.{public} "
        "Put a folder of that name there, or say where it is with --data_path=FOLDER."
    )


def _has_interactions(folder: Path) -> bool:
    return folder.is_dir() and (any(folder.glob("*.inter")) or (folder / "inter.csv").is_file())


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write the file as a whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # noqa: PTH101
        os.replace(temporary, path)  # noqa: PTH105
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
