"""Screens: what windows, text and charts cost, with and without photographs among them, beside WebP, AVIF and PNG.

Each picture goes through fastcodec at several qualities and losslessly, and through Pillow's encoders: PNG and lossless
WebP, which keep every pixel, and lossy WebP and AVIF (4:4:4, speed 6) over a sweep of their own qualities. Pictures are
drawn from fixed seeds in Pillow's own font; the photographs in the mixed ones are scikit-image's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cache
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from PIL import Image, features

from fastcodec import Codec, graphics, info
from fastcodec.lossless import Distortion

from ._coders import AVIF_OPTIONS, Coder, ours, pillow
from .common import console, show_claims, table

QUALITIES = (30, 60, 90, 100)
WEBP_QUALITIES = (50, 75, 90, 100)
AVIF_QUALITIES = (50, 70, 85, 95)
ROUNDS = 3
LEAST_PSNR = 40.0  # at quality 90, of screenshots
EXACT = 60.0  # what identical pixels count as in a mean of dB
LOSSLESS_WEBP = "WebP lossless"

MIXED_SIZE = (1440, 2560)
_PHOTOGRAPHS = ("coffee", "astronaut", "rocket", "chelsea", "hubble_deep_field")


def run(pictures: Mapping[str, Mapping[str, np.ndarray]] | None = None, rounds: int = ROUNDS) -> dict[str, Any]:
    """For each kind of pictures, and each picture and coder: bytes, PSNR, that of the worst 16x16 block, and seconds.

    pictures: uint8 [H, W, 3] by kind ("screenshots", "mixed") and name; these two kinds if None. Seconds are medians of
    `rounds`, in which the coders take turns. PSNR is null where every pixel came back.
    """
    pictures = {"screenshots": screenshots(), "mixed": mixed()} if pictures is None else pictures
    coders = _coders()
    kinds: dict[str, dict[str, dict[str, Any]]] = {}
    for kind, members in pictures.items():
        measured = {name: _measure(coders, pixels, rounds) for name, pixels in members.items()}
        kinds[kind] = measured
        console.print(_shown(kind, members, measured))
    holds = _claims(kinds)
    show_claims(holds)
    return {
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "pillow": {name: features.version(name) for name in ("webp", "avif", "zlib")},
        "holds": holds,
        "sizes": {name: [*pixels.shape[1::-1]] for members in pictures.values() for name, pixels in members.items()},
        "pictures": kinds,
    }


# ---- pictures


@cache
def screenshots() -> dict[str, np.ndarray]:
    """Screenshots without photographs, by name: read-only uint8 [H, W, 3], 1024x768 to 1280x1024 pixels."""
    sizes = {"small": (768, 1024), "wide": (800, 1280), "large": (1024, 1280)}
    table = (
        ("terminal", "terminal", "small", 7),
        ("editor", "editor", "wide", 7),
        ("nineties_desktop", "nineties", "small", 0),
        ("flat_desktop", "desktop", "large", 3),
        ("web_page", "web_page", "wide", 1),
        ("spreadsheet", "spreadsheet", "small", 3),
        ("dashboard", "chart", "large", 5),
        ("document", "text", "small", 3),
    )
    return {name: _read_only(_drawn(kind, *sizes[size], seed)) for name, kind, size, seed in table}


@cache
def mixed() -> dict[str, np.ndarray]:
    """Screens of six tiles with photographs in their own size, by name: read-only uint8 [1440, 2560, 3].

    "gallery": photographs to the left, an editor and a terminal to the right. "viewer": a desktop with photographs over
    its middle.
    """
    height, width = MIXED_SIZE
    gallery = _wall(height, width - 1024)
    beside = [_drawn(kind, height // 2, 1024, 9) for kind in ("editor", "terminal")]
    viewer = _drawn("desktop", height, width, 9).copy()
    viewer[120:1320, 200:1800] = _wall(1200, 1600)[:, ::-1]
    return {
        "gallery": _read_only(np.concatenate([gallery, np.concatenate(beside)], axis=1)),
        "viewer": _read_only(viewer),
    }


def _drawn(kind: str, height: int, width: int, seed: int) -> np.ndarray:
    random = np.random.default_rng((seed, *kind.encode()))
    return graphics.draw(random, height, width, kind=kind, fonts=graphics.PILLOW_FONTS)


def _read_only(pixels: np.ndarray) -> np.ndarray:
    pixels = np.array(pixels, np.uint8, order="C")
    pixels.flags.writeable = False
    return pixels


def _wall(height: int, width: int) -> np.ndarray:
    """Photographs row by row, each row as high as the lowest of them and filled from left to right."""
    photographs, out = _photographs(), np.empty((height, width, 3), np.uint8)
    row, number = 400, 0
    for top in range(0, height, row):
        left = 0
        while left < width:
            photograph = photographs[number % len(photographs)]
            part = photograph[: min(row, height - top, photograph.shape[0]), : width - left]
            out[top : top + part.shape[0], left : left + part.shape[1]] = part
            left, number = left + part.shape[1], number + 1
    return out


def _photographs() -> list[np.ndarray]:
    """At least 400 pixels high but for chelsea, which is cut from its mirror image too: scikit-image's, or clouds."""
    try:
        from skimage import data
    except ModuleNotFoundError:
        return [_clouds(seed) for seed in range(len(_PHOTOGRAPHS))]
    found = [getattr(data, name)() for name in _PHOTOGRAPHS]
    return [np.concatenate([p, p[::-1]])[: max(400, len(p))] if len(p) < 400 else p for p in found]


def _clouds(seed: int) -> np.ndarray:
    """Noise of all scales, the finer the weaker, as in photographs: uint8 [512, 512, 3]."""
    random, total = np.random.default_rng(seed), np.zeros((512, 512, 3))
    for side in (2, 4, 8, 16, 32, 64, 128, 256, 512):
        noise = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        total += (np.asarray(noise.resize((512, 512), Image.Resampling.BICUBIC)) - 127.5) / side**0.8
    return np.clip(127.5 + total, 0, 255).astype(np.uint8)


# ---- coders


def _coders() -> list[Coder]:
    codec = Codec.load("swift", "cpu")
    coders = [ours(f"fastcodec {q}", codec, quality=q) for q in QUALITIES]
    coders += [
        ours("fastcodec lossless", codec, lossless=True),
        pillow("PNG", "PNG"),
        pillow(LOSSLESS_WEBP, "WEBP", lossless=True),
        pillow("WebP lossless 100", "WEBP", lossless=True, quality=100),
    ]
    coders += [pillow(f"WebP {q}", "WEBP", quality=q) for q in WEBP_QUALITIES]
    if features.check("avif"):
        coders += [pillow(f"AVIF {q}", "AVIF", quality=q, **AVIF_OPTIONS) for q in AVIF_QUALITIES]
    return coders


# ---- measuring


def _measure(coders: list[Coder], pixels: np.ndarray, rounds: int) -> dict[str, dict[str, Any]]:
    """A picture's figures, by coder."""
    times: dict[str, list[tuple[float, float]]] = {coder.name: [] for coder in coders}
    found: dict[str, dict[str, Any]] = {}
    for number in range(rounds):
        for coder in coders:
            start = time.perf_counter()
            data = coder.encode(pixels)
            middle = time.perf_counter()
            decoded = coder.decode(data)
            times[coder.name].append((middle - start, time.perf_counter() - middle))
            if number == 0:
                found[coder.name] = _figures(pixels, data, decoded)
    for name, item in found.items():
        encode, decode = zip(*times[name], strict=True)
        item.update(encode_seconds=median(encode), decode_seconds=median(decode))
    return found


def _figures(pixels: np.ndarray, data: bytes, decoded: np.ndarray) -> dict[str, Any]:
    distortion = Distortion.between(pixels, decoded)
    item: dict[str, Any] = {"bytes": len(data), "psnr": _psnr(distortion.mean), "worst_block": _psnr(distortion.worst)}
    if data.startswith(b"\xf1FIC"):
        facts = info(data)
        item |= {"tiles": facts.tiles, "lossless_tiles": facts.lossless_tiles}
    return item


def _psnr(error: float) -> float | None:
    """dB of a mean squared error in levels; None where there is none."""
    return 10 * math.log10(255**2 / error) if error else None


def _capped(psnr: float | None) -> float:
    return EXACT if psnr is None else min(EXACT, psnr)


def _shown(kind: str, pictures: Mapping[str, np.ndarray], measured: Mapping[str, Mapping[str, Any]]) -> Any:
    """A table of a kind of pictures, a row a coder. What is exact counts as EXACT dB."""
    pixels = sum(picture.shape[0] * picture.shape[1] for picture in pictures.values())
    shown = table(
        f"{len(pictures)} {kind}, {pixels / 1e6:.1f} MP; PSNR: means; seconds: sums",
        "",
        "kB",
        "PSNR",
        "worst block",
        "lossless tiles",
        "enc. s",
        "dec. s",
    )
    for name in next(iter(measured.values())):
        items = [figures[name] for figures in measured.values()]
        tiles = sum(item.get("tiles", 0) for item in items)
        shown.add_row(
            name,
            f"{sum(item['bytes'] for item in items) / 1000:,.1f}",
            f"{fmean(_capped(item['psnr']) for item in items):.2f}",
            f"{min(_capped(item['worst_block']) for item in items):.2f}",
            f"{sum(item['lossless_tiles'] for item in items)} of {tiles}" if tiles else "",
            f"{sum(item['encode_seconds'] for item in items):.2f}",
            f"{sum(item['decode_seconds'] for item in items):.2f}",
        )
    return shown


def _claims(kinds: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, bool]:
    """What fastcodec promises of these pictures, and whether it is so."""
    every = [figures for members in kinds.values() for figures in members.values()]
    screens = list(kinds.get("screenshots", {}).values())
    at_90 = [figures["fastcodec 90"] for figures in screens]
    rival = [figures[LOSSLESS_WEBP] for figures in screens]
    return {
        "lossless files are exact": all(figures["fastcodec lossless"]["psnr"] is None for figures in every),
        "a screenshot at quality 90 is no larger than lossless WebP": all(
            ours["bytes"] <= other["bytes"] for ours, other in zip(at_90, rival, strict=True)
        ),
        f"and comes back at {LEAST_PSNR:.0f} dB": all(_capped(item["psnr"]) >= LEAST_PSNR for item in at_90),
        "no file is larger than a lossless one by more than 64 bytes and 1 %": all(
            figures[f"fastcodec {q}"]["bytes"] <= 1.01 * figures["fastcodec lossless"]["bytes"] + 64
            for figures in every
            for q in QUALITIES
        ),
    }
