"""How dear a squared error should be to the encoder's rounding: `python -m bench.rounding IMAGES`.

Files of the images that training held out, with some weights of `entropy/rdoq.py`, and their BD-rate against plain
rounding to the nearest integer. The best weight changes with the weights of the model: measure again with a release.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from unittest import mock

import numpy as np

from fastcodec import Codec
from fastcodec.crops import CropSource
from fastcodec.entropy import rdoq as rounding
from fastcodec.images import Picture
from fastcodec.metrics import psnr

from .common import argument_parser, bd_percent, console, table

WEIGHTS = (10.0, 14.0, 20.0, 28.0, 40.0, 56.0, 80.0)
QUALITIES = (5, 20, 35, 50, 65, 80, 95)
CROP = 512
PLAIN = 1e9  # no saving is worth an error


def curve(codec: Codec, pictures: list[Picture], weight: float) -> tuple[list[float], list[float]]:
    """Mean logarithm of the bytes and mean PSNR of the files at each quality."""
    sizes, qualities = [], []
    with mock.patch.object(rounding, "WEIGHT", weight):
        for quality in QUALITIES:
            files = [codec.encode(picture, quality) for picture in pictures]
            decoded = [codec.decode(data, out="picture").pixels for data in files]
            sizes.append(math.exp(fmean(math.log(len(data)) for data in files)))
            qualities.append(fmean(psnr(p.pixels, d) for p, d in zip(pictures, decoded, strict=True)))
    return sizes, qualities


def main() -> None:
    """The command line."""
    parser = argument_parser("bench.rounding", __doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS)
    arguments = parser.parse_args()
    codec = Codec.load("swift", "cpu")
    crops = CropSource(arguments.images, CROP, 0).validation_batch(CROP)
    pictures = [Picture(np.ascontiguousarray(crop.permute(1, 2, 0).numpy())) for crop in crops]
    plain = curve(codec, pictures, PLAIN)
    shown = table(f"BD-rate against plain rounding, {len(pictures)} crops", "weight", "BD-rate")
    for weight in arguments.weights:
        shown.add_row(f"{weight:g}", f"{bd_percent(*plain, *curve(codec, pictures, weight)):+.2f} %")
    console.print(shown)


if __name__ == "__main__":
    main()
