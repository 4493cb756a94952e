"""Large photographs: BD-rate of real files against AVIF, WebP and JPEG, as they are and reduced to 2048 pixels.

Kodak's pictures are small, and a codec that wins there may lose on a camera's: they are smoother, and of several tiles.
The photographs are those of the folder $FASTCODEC_LARGE (`common.large_photographs`), cut to 3072x2048 at most; and
the same, whole, reduced to 2048 pixels along their longer side (Lanczos). PSNR over all three colours, of what comes
back as eight bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np
from PIL import Image, features

from fastcodec import Codec
from fastcodec.metrics import bd_rate, psnr

from ._coders import AVIF_OPTIONS, Coder, ours, pillow
from .common import console, large_photographs, show_claims, table

OURS = "fastcodec"
QUALITIES = (5, 20, 40, 60, 80, 95)
RIVAL_QUALITIES = {
    "AVIF": (25, 40, 55, 68, 80, 90),
    "WebP": (5, 30, 60, 80, 90, 97),
    "JPEG": (15, 35, 60, 80, 90, 96),
}
REDUCED = 2048  # pixels along the longer side
LEAST_PERCENT = -3.0  # of BD-rate against AVIF, on average

Curves = dict[str, dict[str, list[float]]]  # by coder: bytes and PSNR at each quality


def run(pictures: Mapping[str, Mapping[str, np.ndarray]] | None = None) -> dict[str, Any]:
    """For each size, photograph and coder: bytes and PSNR at each quality, and BD-rates of ours against the others.

    pictures: uint8 [H, W, 3] by size ("as they are", "2048 pixels") and name; read from $FASTCODEC_LARGE if None.
    """
    codec, sizes = Codec.load("swift", "cpu"), dict[str, dict[str, dict[str, Any]]]()
    families = _families(codec)
    for size, members in _sizes() if pictures is None else pictures.items():
        shown = table(f"BD-rate of {OURS}, {size}", "photograph", "pixels", *(n for n in families if n != OURS))
        sizes[size] = rows = {}
        for name, pixels in members.items() if isinstance(members, Mapping) else members:
            curves = {family: _curve(coders, pixels) for family, coders in families.items()}
            against = {rival: _against(curves, rival) for rival in families if rival != OURS}
            rows[name] = {"width": pixels.shape[1], "height": pixels.shape[0], "bd_rate": against, "curves": curves}
            shown.add_row(name[:32], f"{pixels.shape[1]}x{pixels.shape[0]}", *map(_percent, against.values()))
        means: dict[str, Any] = {"mean": fmean, "median": median, "worst": max}
        for word, over in means.items():
            shown.add_row(word, "", *(_percent(_over(rows, rival, over)) for rival in families if rival != OURS))
        console.print(shown)
    holds = {
        f"{-LEAST_PERCENT:.0f} % smaller than AVIF on average, {size}": mean <= LEAST_PERCENT
        for size, rows in sizes.items()
        if (mean := _over(rows, "AVIF", fmean)) is not None
    }
    show_claims(holds)
    return {
        "qualities": {OURS: list(QUALITIES), **{name: list(q) for name, q in RIVAL_QUALITIES.items()}},
        "pillow": {name: features.version(name) for name in ("avif", "webp", "jpg")},
        "holds": holds,
        "mean_bd_rate_percent": {
            size: {rival: _over(rows, rival, fmean) for rival in families if rival != OURS}
            for size, rows in sizes.items()
        },
        "sizes": sizes,
    }


def _sizes() -> Iterator[tuple[str, Iterator[tuple[str, np.ndarray]]]]:
    """The two sizes, each with its photographs, which are read one by one."""
    yield "as they are", ((name, picture.pixels) for name, picture in large_photographs())
    yield f"{REDUCED} pixels", ((name, _reduced(p.pixels)) for name, p in large_photographs(cut=False))


def _reduced(pixels: np.ndarray) -> np.ndarray:
    image = Image.fromarray(pixels)
    image.thumbnail((REDUCED, REDUCED), Image.Resampling.LANCZOS, reducing_gap=None)
    return np.asarray(image)


def _families(codec: Codec) -> dict[str, list[Coder]]:
    """Every coder at each of its qualities."""
    families = {OURS: [ours(f"{OURS} {q}", codec, quality=q) for q in QUALITIES]}
    all_options: dict[str, dict[str, Any]] = {"AVIF": AVIF_OPTIONS, "WebP": {"method": 6}, "JPEG": {"subsampling": 0}}
    for name, qualities in RIVAL_QUALITIES.items():
        options = all_options[name]
        if name == "AVIF" and not features.check("avif"):
            continue
        families[name] = [pillow(f"{name} {q}", name.upper(), quality=q, **options) for q in qualities]
    return families


def _curve(coders: Sequence[Coder], pixels: np.ndarray) -> dict[str, list[float]]:
    curve: dict[str, list[float]] = {"bytes": [], "psnr": []}
    for coder in coders:
        data = coder.encode(pixels)
        curve["bytes"].append(len(data))
        curve["psnr"].append(psnr(pixels, coder.decode(data)))
    return curve


def _against(curves: Curves, rival: str) -> float | None:
    """BD-rate in percent; None where the curves have no range of quality in common."""
    found = bd_rate(*(curves[name][key] for name in (rival, OURS) for key in ("bytes", "psnr")))
    return None if found is None else found.percent


def _over(rows: Mapping[str, Mapping[str, Any]], rival: str, mean: Any) -> float | None:
    values = [v for row in rows.values() if (v := row["bd_rate"].get(rival)) is not None]
    return mean(values) if values else None


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1f} %"
