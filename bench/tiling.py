"""What tiling costs: BD-rate of files in tiles of 1024x1024 pixels against the same images as one tile.

Hyper latents, context and streams of a tile depend on that tile alone, so its borders cost bits. The images are natural
photographs of four tiles and more, at their own resolution, cut to 3072x2048 at most (`_common.large_photographs`).
Neither mosaics nor enlarged small images would do: the ones have borders of their own, the others have no detail.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any
from unittest import mock

from fastcodec import Codec, container
from fastcodec.geometry import TILE_LATENTS, Grid
from fastcodec.images import Picture
from fastcodec.metrics import bd_rate, psnr

from ._common import console, large_photographs, table

QUALITIES = (10, 35, 60, 90)
ONE_TILE = 1 << 12  # latents
GOAL_PERCENT = 0.5


def run() -> dict[str, Any]:
    """Each image's two curves and their BD-rate, and the mean."""
    codec = Codec.load("swift", "cpu")
    shown = table(
        "Tiles against one: bytes at four qualities", "image", "tiles", *(f"q{q}" for q in QUALITIES), "BD-rate"
    )
    rows = []
    for name, picture in large_photographs():
        tiled, whole = (_curve(codec, picture, side) for side in (TILE_LATENTS, ONE_TILE))
        result = bd_rate(whole["bytes"], whole["psnr_rgb"], tiled["bytes"], tiled["psnr_rgb"])
        row = {
            "image": name,
            "width": picture.width,
            "height": picture.height,
            "tiles": Grid(picture.height, picture.width).tile_count,
            "bd_rate_percent": result.percent,
            "tiled": tiled,
            "one_tile": whole,
        }
        rows.append(row)
        extra = [f"{100 * (t / w - 1):+.2f} %" for t, w in zip(tiled["bytes"], whole["bytes"], strict=True)]
        shown.add_row(name[:24], str(row["tiles"]), *extra, f"{result.percent:+.3f} %")
    mean = fmean(row["bd_rate_percent"] for row in rows)
    shown.add_row("mean", "", *("" for _ in QUALITIES), f"{mean:+.3f} %")
    console.print(shown)
    return {
        "source": "photographs of $FASTCODEC_LARGE" if os.environ.get("FASTCODEC_LARGE") else "scikit-image's retina",
        "qualities": list(QUALITIES),
        "mean_bd_rate_percent": mean,
        "holds": {f"mean BD-rate of tiling <= {GOAL_PERCENT} %": mean <= GOAL_PERCENT},
        "images": rows,
    }


def _curve(codec: Codec, picture: Picture, side: int) -> dict[str, list[float]]:
    curve: dict[str, list[float]] = {"bytes": [], "psnr_rgb": []}
    for quality in QUALITIES:
        data = codec.encode_picture(picture, quality=quality, _tile_latents=side).data
        with _tiles_of(side):
            decoded = codec.decode_picture(data)
        curve["bytes"].append(len(data))
        curve["psnr_rgb"].append(psnr(picture.pixels, decoded.pixels))
    return curve


@contextmanager
def _tiles_of(side: int) -> Iterator[None]:
    """Decode as if the format's tiles had this many latents a side: the format itself knows one size only."""
    with mock.patch.object(container, "Grid", partial(Grid, tile_latents=side)):
        yield
