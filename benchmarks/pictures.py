"""The README's pictures of a board and of a report, from their pages: `make pictures`, or

    python -m benchmarks.pictures demo/leaderboard.html=docs/board.png report.html=docs/report.png

Rendered by a headless Chromium without a network, cut where the page ends or at --height, in 64 colours.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageChops

from mmrec_mrdib.paths import write_atomically

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
MARGIN = 16  # pixels that stay around what is there


def shot(page: Path, width: int, height: int) -> Image.Image:
    """The upper part of a page, (height, width) pixels.

    Raises:
        SystemExit: no Chromium, or it made no picture.
    """
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        raise SystemExit(f"error: none of {', '.join(PROGRAMS)} is installed")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "page.png"
        command = [program, *OPTIONS, f"--user-data-dir={scratch}/profile", f"--window-size={width},{height}"]
        done = subprocess.run(
            [*command, f"--screenshot={out}", page.absolute().as_uri()], capture_output=True, text=True, timeout=120
        )
        if not out.is_file():
            raise SystemExit(f"error: {page}: no picture: {done.stderr.strip()[-300:]}")
        return Image.open(io.BytesIO(out.read_bytes())).convert("RGB")


def trimmed(picture: Image.Image) -> Image.Image:
    """Without the rows and columns of background at the right and below, but for a margin."""
    background = Image.new("RGB", picture.size, picture.getpixel((0, 0)))
    box = ImageChops.difference(picture, background).getbbox()
    if box is None:
        raise SystemExit("error: the page is empty")
    return picture.crop((0, 0, min(box[2] + MARGIN, picture.width), min(box[3] + MARGIN, picture.height)))


def compressed(picture: Image.Image) -> bytes:
    """A PNG of 64 colours."""
    out = io.BytesIO()
    picture.quantize(64, dither=Image.Dither.NONE).save(out, "png", optimize=True)
    return out.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="PAGE.html=PICTURE.png")
    parser.add_argument("--width", type=int, default=1200, help="of the window (default: %(default)s)")
    parser.add_argument("--height", type=int, default=1300, help="of the window (default: %(default)s)")
    options = parser.parse_args(arguments)
    for pair in options.pairs:
        page, _, target = pair.partition("=")
        if not target or not Path(page).is_file():
            parser.error(f"'{pair}': expected a page that exists and a picture, PAGE.html=PICTURE.png")
        write_atomically(Path(target), compressed(trimmed(shot(Path(page), options.width, options.height))))
        print(f"{target}: {Path(target).stat().st_size // 1024} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
