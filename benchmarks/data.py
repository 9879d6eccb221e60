"""Time and peak memory of the two ends of a project: reading a large reviews file, and recommending to many users.

python -m benchmarks.data prepare --gigabytes 5       `data prepare amazon` on generated reviews
python -m benchmarks.data recommend                   `recommend` for 200,000 users x 50,000 items, top 20
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def measured(arguments: list[str]) -> dict[str, float]:
    """Seconds and peak memory of a command of ours, in a process of its own."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    started = time.perf_counter()
    code = "import sys; from mmrec_mrdib import cli; sys.exit(cli.main(sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    return {"seconds": time.perf_counter() - started, "peak_gib": peak}


def prepare(folder: Path, gigabytes: float) -> dict[str, float]:
    """Reviews of about 620 bytes; users and items of uneven popularity."""
    path, rng, text = folder / "reviews.json", np.random.default_rng(0), "so it was " * 45
    written = lines = 0
    with path.open("w") as file:
        while written < gigabytes * 1e9:
            users = (1_500_000 * rng.random(100_000) ** 2).astype(int)
            items = (200_000 * rng.random(100_000) ** 3).astype(int)
            block = "".join(
                f'{{"reviewerID": "A{u:013}", "asin": "B{i:09}", "reviewerName": "some one", "helpful": [0, 1], "reviewText": '
                f'"{text}", "overall": 5.0, "summary": "as it was", "unixReviewTime": {1_300_000_000 + n}}}\n'
                for n, (u, i) in enumerate(zip(users.tolist(), items.tolist(), strict=True), lines)
            )
            file.write(block)
            written, lines = written + len(block), lines + len(users)
    result = measured(["data", "prepare", "amazon", "--reviews", str(path), "--output", str(folder / "big")])
    return {"gigabytes": written / 1e9, "lines": lines, **result}


def recommend(folder: Path, users: int, items: int) -> dict[str, float]:
    """One epoch of VBPR on ten interactions a user, then lists for all users."""
    rng = np.random.default_rng(0)
    data = folder / "big"
    data.mkdir()
    pairs = np.stack([np.repeat(np.arange(users), 10), rng.integers(0, items, users * 10)], 1)
    pairs[:items, 1] = np.arange(items)  # every item occurs
    labels = np.zeros(len(pairs), dtype=int)
    labels[9:1000:10], labels[8:1000:10] = 2, 1  # a hundred users to evaluate on: training is not what is measured
    lines = "\n".join(f"{u}\t{i}\t{x}" for (u, i), x in zip(pairs.tolist(), labels.tolist(), strict=True))
    (data / "big.inter").write_text(f"userID\titemID\tx_label\n{lines}\n")
    np.save(data / "image_feat.npy", rng.random((items, 16), dtype=np.float32))
    training = ["train", "--model", "VBPR", "--dataset", "big", "--data_path", str(folder), "--baseline", "--epochs=1"]
    measured([*training, "--runs", str(folder / "runs"), "--quiet"])
    (run,) = (folder / "runs").iterdir()
    # In a process of its own, whose children are this command alone.
    code = (
        "import json; from benchmarks.data import measured; "
        f"print(json.dumps(measured(['recommend', {str(run)!r}, '--output', {str(folder / 'r.csv')!r}])))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    return {"users": users, "items": items, **json.loads(done.stdout.splitlines()[-1])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "recommend"))
    parser.add_argument("--gigabytes", type=float, default=5)
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--items", type=int, default=50_000)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        if options.what == "prepare":
            result = prepare(folder, options.gigabytes)
        else:
            result = recommend(folder, options.users, options.items)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
