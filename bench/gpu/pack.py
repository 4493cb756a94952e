"""Packs training images, and photographs to measure with, for a machine that gets few megabytes:

    python -m bench.gpu.pack DATA OUT [--kodak FOLDER] [--megabytes 40] [--part 1/4]

OUT/train holds the validation images of DATA, all of them, so that the loss is that of a run on DATA itself;
`validation.txt`, which names them; and as many of the other images as fit, as they are: files recoded to fit would
teach the highest qualities another coder's losses. The parts of a folder share no training image. OUT/kodak holds the
Kodak images, recoded as lossless WebP.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fastcodec.crops import VALIDATION_EVERY, VALIDATION_LIST
from fastcodec.files import image_files

from ..common import argument_parser

SEED = 7  # of the order in which images are taken


def pack(data: Path, out: Path, megabytes: float, part: tuple[int, int] = (1, 1), kodak: Path | None = None) -> dict:
    """Fills the folder `out`, which is made anew. Returns counts and bytes. ValueError: nothing there, or no room."""
    files = image_files(data, recursive=True) if data.is_dir() else []
    if len(files) < VALIDATION_EVERY:
        raise ValueError(f"{data}: {len(files)} images; need {VALIDATION_EVERY}")
    shutil.rmtree(out, ignore_errors=True)
    left, photographs = megabytes * 1e6, 0
    for file in sorted(kodak.glob("*.png")) if kodak else ():
        target = out / "kodak" / file.with_suffix(".webp").name
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(file) as image:
            image.save(target, lossless=True, quality=100, method=4)
        left -= target.stat().st_size
        photographs += 1
    held_out = files[::VALIDATION_EVERY]
    others = [file for i, file in enumerate(files) if i % VALIDATION_EVERY]
    np.random.default_rng(SEED).shuffle(others)
    number, parts = part
    taken = 0
    names: list[str] = []
    for file in [*held_out, *others[number - 1 :: parts]]:
        left -= file.stat().st_size
        if left < 0:
            break
        name = "-".join(file.relative_to(data).parts)  # one folder, whatever DATA's are
        (out / "train").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, out / "train" / name)
        if len(names) < len(held_out):
            names.append(name)
        else:
            taken += 1
    if taken < VALIDATION_EVERY:
        raise ValueError(f"{megabytes} MB hold {taken} training images beside what is measured with: too few")
    (out / "train" / VALIDATION_LIST).write_text("".join(f"{name}\n" for name in names))
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    return {"training": taken, "of": len(others), "validation": len(names), "kodak": photographs, "bytes": size}


def _part(text: str) -> tuple[int, int]:
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text} is not a part, such as 1/4")
    return int(number), int(parts)


def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = argument_parser("bench.gpu.pack", __doc__)
    parser.add_argument("data", type=Path, help="folder of training images, searched recursively")
    parser.add_argument("out", type=Path, help="folder to fill; what is in it goes")
    parser.add_argument("--kodak", type=Path, help="folder of the Kodak images")
    parser.add_argument("--megabytes", type=float, default=40.0, help="at most, in all (%(default)s)")
    parser.add_argument("--part", type=_part, default=(1, 1), metavar="N/PARTS", help="of the training images (1/1)")
    arguments = parser.parse_args(argv)
    try:
        print(pack(arguments.data, arguments.out, arguments.megabytes, arguments.part, arguments.kodak))
    except (OSError, ValueError) as error:
        print(f"pack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
