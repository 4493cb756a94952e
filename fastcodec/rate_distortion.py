"""Rate-distortion curves: BD-rates against the curves of other codecs, and the plot among them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

Curve: TypeAlias = "dict[str, list[float]]"  # columns of equal length: bpp, and psnr_rgb or ms_ssim_rgb or both

REFERENCE_VARIABLE = "FASTCODEC_REFERENCE"
# Which of the reference curves a reader looks for first, and which the plot shows: (beginning of the name, colour).
FIRST = ("VVC", "BPG", "AV1", "JPEG", "jpeg (Pillow", "WebP", "webp (Pillow")
_PLOTTED = (
    ("VVC", "#1b1b1b"),
    ("AV1", "#00798c"),
    ("mbt2018-mean", "#8d6a9f"),
    ("jxl", "#c28f2c"),
    ("WebP", "#5b8e55"),
    ("JPEG2000", "#9a9a9a"),
    ("JPEG", "#6f6f6f"),
)
_OURS = "#d1495b"


@dataclass(frozen=True)
class Mean:
    """A point of the curve: means over the images at one quality, each image counting alike."""

    quality: int
    images: int
    bytes: int  # in all
    bpp: float
    psnr_rgb: float
    ms_ssim_rgb: float | None
    encode_seconds: float
    decode_seconds: float
    overhead: float  # of all real bits over all estimated bits: 0.004 is 0.4 %


class Reference(NamedTuple):
    """A file of curves to compare with."""

    path: Path
    dataset: str
    curves: dict[str, Curve]


@dataclass(frozen=True)
class Comparison:
    """The BD-rate of our curve against a reference curve."""

    reference: str
    metric: str  # psnr_rgb or ms_ssim_rgb
    percent: float  # below 0: we need fewer bits
    low: float  # the range compared, in dB
    high: float
    coverage: float  # the part of our curve that it speaks for


def find_reference() -> Path | None:
    """The reference curves that this installation finds by itself, or None."""
    named = os.environ.get(REFERENCE_VARIABLE)
    if named:
        return Path(named)
    beside = Path(__file__).resolve().parents[2] / "shared" / "reference" / "rd-kodak.json"
    return beside if beside.is_file() else None


def read_reference(path: Path) -> Reference:
    """A file of curves: {"dataset": text, "curves": {name: {"bpp": [...], "psnr_rgb": [...], "ms_ssim_rgb": [...]}}}.

    Raises ValueError, naming the file, if it is anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        for curve in content["curves"].values():
            rates = curve["bpp"]
            if any(len(curve[metric]) != len(rates) for metric in ("psnr_rgb", "ms_ssim_rgb") if metric in curve):
                raise ValueError("a curve has columns of different length")
        return Reference(path, str(content.get("dataset", "")), content["curves"])
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of rate-distortion curves ({type(error).__name__}: {error})") from error


def is_kodak(files: Iterable[str]) -> bool:
    """Whether the files are the 24 Kodak images, no more and no fewer."""
    return sorted(Path(name).stem for name in files) == [f"kodim{i:02d}" for i in range(1, 25)]


def compare(points: Sequence[Mean], curves: dict[str, Curve]) -> list[Comparison]:
    """BD-rates against every curve that overlaps ours, by PSNR and by MS-SSIM; those that matter most come first."""
    from .metrics import bd_rate, ms_ssim_db

    def in_db(metric: str, values: Iterable[float | None]) -> list[float]:
        known = [math.nan if v is None else v for v in values]
        return [ms_ssim_db(v) for v in known] if metric == "ms_ssim_rgb" else known

    comparisons = []
    for metric in ("psnr_rgb", "ms_ssim_rgb"):
        ours = [(p.bpp, getattr(p, metric)) for p in points if getattr(p, metric) is not None]
        for name in sorted(curves, key=importance):
            theirs = curves[name]
            if metric not in theirs or not ours:
                continue
            result = bd_rate(
                theirs["bpp"], in_db(metric, theirs[metric]), [r for r, _ in ours], in_db(metric, [v for _, v in ours])
            )
            if result is not None:
                comparisons.append(Comparison(name, metric, **asdict(result)))
    return comparisons


def importance(name: str) -> int:
    """Sorts the curves of `FIRST` first; the others keep their order."""
    return next((i for i, start in enumerate(FIRST) if _is(name, start)), len(FIRST))


def _is(name: str, start: str) -> bool:
    """Whether a curve is the one called `start`: JPEG is not JPEG2000."""
    return name.startswith(start) and not name[len(start) :][:1].isdigit()


def plot(path: Path, name: str, points: Sequence[Mean], curves: dict[str, Curve], title: str) -> None:
    """Draw our rate-distortion curves among a readable few of the references'. Needs matplotlib."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from .metrics import ms_ssim_db

    panels: list[tuple[str, str, Callable[[float], float]]] = [("psnr_rgb", "PSNR (dB, RGB)", float)]
    if any(p.ms_ssim_rgb is not None for p in points):
        panels.append(("ms_ssim_rgb", "MS-SSIM (dB, RGB)", ms_ssim_db))
    chosen = []
    for start, colour in _PLOTTED:
        known = [n for n in curves if _is(n, start)]
        if known:
            chosen.append((known[0], colour))
    if not chosen:  # the curves of another run, say
        palette = [colour for _, colour in _PLOTTED]
        chosen = list(zip(curves, palette, strict=False))
    style: dict[Any, Any] = {
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": "#888888",
        "svg.fonttype": "none",
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(6.4 * len(panels), 5.2), layout="constrained")
        for i, (metric, label, scale) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), i + 1)
            ours = [(p.bpp, scale(getattr(p, metric))) for p in points if getattr(p, metric) is not None]
            ours = [(x, y) for x, y in ours if math.isfinite(y)]
            if not ours:
                continue
            right = 1.08 * max(x for x, _ in ours)
            lowest, highest = min(y for _, y in ours), max(y for _, y in ours)
            for reference, colour in chosen:
                if metric in curves[reference]:
                    pairs = sorted(zip(curves[reference]["bpp"], map(scale, curves[reference][metric]), strict=True))
                    x, y = zip(*pairs, strict=True)
                    axes.plot(x, y, color=colour, linewidth=1.3, marker="o", markersize=2.6, label=reference)
                    highest = max([highest, *(v for u, v in pairs if u <= right)])
                    lowest = min([lowest, *(v for u, v in pairs if u <= right)])
            x, y = zip(*ours, strict=True)
            axes.plot(x, y, color=_OURS, linewidth=2.6, marker="o", markersize=5, label=name, zorder=10)
            margin = 0.03 * (highest - lowest) or 1
            axes.set(xlim=(0, right), ylim=(lowest - margin, highest + margin), xlabel="bits per pixel", ylabel=label)
            axes.grid(color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        # Ours was drawn last, to lie on top; it is named first.
        order = [len(labels) - 1, *range(len(labels) - 1)]
        figure.axes[0].legend([handles[i] for i in order], [labels[i] for i in order], loc="lower right", frameon=False)
        figure.suptitle(f"{name} on {title}", fontweight="bold")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=160)
