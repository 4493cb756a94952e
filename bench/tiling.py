"""What tiling costs: BD-rate of files in tiles of 1024x1024 pixels against the same images as one tile.

Hyper latents, context and streams of a tile depend on that tile alone, so its borders cost bits. The images are natural
photographs of four tiles and more, at their own resolution, cut to 3072x2048 at most (`common.large_photographs`).
Neither mosaics nor enlarged small images would do: the ones have borders of their own, the others have no detail.

And where the cost comes from, in ideal code lengths of the same latents: tiles that see their own hyper latents alone,
as they are; hyper-synthesis across borders; hyper-analysis too; and context too, which is one tile.
"""

from __future__ import annotations

import os
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fastcodec import container
from fastcodec.constants import HYPER_STRIDE, MIN_QUALITY
from fastcodec.container import Header, TileData
from fastcodec.engines.cpu import CpuEngine
from fastcodec.entropy import rdoq as rounding
from fastcodec.geometry import Grid, Rect, hyper_size
from fastcodec.kernels import checkerboard
from fastcodec.kernels.integer_layer import exact_float32
from fastcodec.metrics import psnr
from fastcodec.models.swift import release
from fastcodec.models.swift.entropy_model import Parameters, reconstruct
from fastcodec.models.swift.network import quality_position

from .common import bd_percent, console, large_photographs, table

QUALITIES = (10, 35, 60, 90)
GOAL_PERCENT = 0.5
PART_QUALITIES = (35, 60)
WAYS = ("tiles", "hyper-synthesis across borders", "hyper-analysis too", "one tile")


def run() -> dict[str, Any]:
    """Each image's two curves and their BD-rate, and the mean."""
    engine = CpuEngine(release.load("swift"))
    shown = table(
        "Tiles against one: bytes at four qualities", "image", "tiles", *(f"q{q}" for q in QUALITIES), "BD-rate"
    )
    rows = []
    for name, picture in large_photographs():
        tiled, whole = (_curve(engine, picture.pixels, one_tile) for one_tile in (False, True))
        percent = bd_percent(whole["bytes"], whole["psnr_rgb"], tiled["bytes"], tiled["psnr_rgb"])
        row: dict[str, Any] = {
            "image": name,
            "width": picture.width,
            "height": picture.height,
            "tiles": Grid(picture.height, picture.width).tile_count,
            "bd_rate_percent": percent,
            "tiled": tiled,
            "one_tile": whole,
        }
        rows.append(row)
        extra = [f"{100 * (t / w - 1):+.2f} %" for t, w in zip(tiled["bytes"], whole["bytes"], strict=True)]
        shown.add_row(name[:24], str(row["tiles"]), *extra, f"{percent:+.3f} %")
        row["bits"] = {f"quality {q}": _bits(engine.model, picture.pixels, q) for q in PART_QUALITIES}
    mean = fmean(row["bd_rate_percent"] for row in rows)
    shown.add_row("mean", "", *("" for _ in QUALITIES), f"{mean:+.3f} %")
    console.print(shown)
    more = {
        way: fmean(100 * (bits[way] / bits["one tile"] - 1) for row in rows for bits in row["bits"].values())
        for way in WAYS
    }
    for way, percent in more.items():
        console.print(f"{way}: {percent:+.2f} % of rate", highlight=False)
    return {
        "source": "photographs of $FASTCODEC_LARGE" if os.environ.get("FASTCODEC_LARGE") else "scikit-image's retina",
        "qualities": list(QUALITIES),
        "mean_bd_rate_percent": mean,
        "mean_rate_percent_by_way": more,
        "holds": {f"mean BD-rate of tiling <= {GOAL_PERCENT} %": mean <= GOAL_PERCENT},
        "images": rows,
    }


def _curve(engine: CpuEngine, pixels: np.ndarray, one_tile: bool) -> dict[str, list[float]]:
    """Bytes of files and PSNR at QUALITIES, no tile being lossless."""
    curve: dict[str, list[float]] = {"bytes": [], "psnr_rgb": []}
    height, width = pixels.shape[:2]
    for quality in QUALITIES:
        # Of a floating-point model, whose files these are not, the format has the whole image as one tile.
        header = Header(width, height, quality, engine.model.identity, float_entropy=one_tile, written_on="")
        (payloads,), _ = engine.encode([pixels], header.grid, quality, "size")
        data = container.write(header, [TileData(payload) for payload in payloads])
        decoded = engine.decode([container.read(data)], Rect(0, 0, height, width), "exact").wait()[0]
        curve["bytes"].append(len(data))
        curve["psnr_rgb"].append(psnr(pixels, decoded))
    return curve


@torch.inference_mode()
def _bits(model: release.Model, pixels: np.ndarray, quality: int) -> dict[str, float]:
    """Ideal code lengths of an image's latents, hyper latents included, in each of WAYS."""
    grid = Grid(*pixels.shape[:2])
    whole = Rect(0, 0, grid.latent_height, grid.latent_width)
    t = torch.tensor([quality_position(quality)]).float()
    beyond = (0, 16 * whole.width - grid.width, 0, 16 * whole.height - grid.height)
    x = F.pad(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, beyond, mode="replicate")
    y = model.g_a(x.contiguous(memory_format=torch.channels_last), t) * model.gain[quality - MIN_QUALITY][:, None, None]
    tiles = list(grid.tiles())

    def hyper_latents(area: Rect) -> Tensor:
        part = y[:, :, *area.slices]
        part = F.pad(part, (0, -area.width % HYPER_STRIDE, 0, -area.height % HYPER_STRIDE), mode="replicate")
        z = model.h_a(part.contiguous(memory_format=torch.channels_last), t)
        return z.round().clamp(-127, 127).to(torch.int16).permute(0, 2, 3, 1).contiguous()

    def psi(z: Tensor, area: Rect) -> Tensor:
        return checkerboard.merge(*model.entropy.hyper_synthesis(z, area.height, area.width), area.height, area.width)

    def bits(areas: list[Rect], zs: list[Tensor], psis: list[Tensor]) -> float:
        channels = torch.arange(model.config.hyper_latents)
        total = sum(float(model.hyper_code_lengths[channels, z.long() + 127].sum()) for z in zs)
        return total + sum(
            _latent_bits(model, y[:, :, *a.slices], p, quality) for a, p in zip(areas, psis, strict=True)
        )

    with exact_float32():
        own = [hyper_latents(tile) for tile in tiles]
        joined = torch.zeros(1, hyper_size(whole.height), hyper_size(whole.width), own[0].shape[3], dtype=torch.int16)
        for tile, z in zip(tiles, own, strict=True):
            top, left = tile.top // HYPER_STRIDE, tile.left // HYPER_STRIDE
            joined[:, top : top + z.shape[1], left : left + z.shape[2]] = z
        seen = hyper_latents(whole)
        across, of_whole = psi(joined, whole), psi(seen, whole)
        results = (
            bits(tiles, own, [psi(z, tile) for z, tile in zip(own, tiles, strict=True)]),
            bits(tiles, own, [across[:, *tile.slices] for tile in tiles]),
            bits(tiles, [seen], [of_whole[:, *tile.slices] for tile in tiles]),
            bits([whole], [seen], [of_whole]),
        )
    return dict(zip(WAYS, results, strict=True))


def _latent_bits(model: release.Model, y: Tensor, psi: Tensor, quality: int) -> float:
    """Of the symbols of latents y [1, M, h, w], coded as one tile with psi [1, h, w, features]."""
    height, width = y.shape[2:]
    y_anchors, y_others = checkerboard.split(y.permute(0, 2, 3, 1))
    psi_anchors, psi_others = checkerboard.split(psi.contiguous())
    weight = model.distortion_weight(quality)
    lengths, total = model.code_lengths, 0.0
    anchors, others = (torch.zeros(half.shape, dtype=torch.int32) for half in (y_anchors, y_others))

    def coded(y: Tensor, found: Parameters, channels: slice, into: Tensor) -> float:
        symbols = rounding.symbols(y[..., channels], found.means, found.indexes, weight[channels], lengths.float())
        into[..., channels] = reconstruct(symbols, found.means)
        return float(lengths[found.indexes.long(), symbols.long().abs().clamp(max=lengths.shape[1] - 1)].sum())

    for number, channels in enumerate(model.entropy.groups):
        before = slice(0, channels.start)
        known = anchors[..., before].contiguous() if number else None
        found = model.entropy.anchor_parameters(psi_anchors, quality, number, known)
        total += coded(y_anchors, found, channels, anchors)
        own, known = anchors[..., channels].contiguous(), others[..., before].contiguous() if number else None
        found = model.entropy.non_anchor_parameters(psi_others, own, (height, width), quality, number, known)
        total += coded(y_others, found, channels, others)
    return total
