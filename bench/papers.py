"""The checkerboard paper's timing tables: decoding with a serial context model and with the checkerboard's two passes.

He et al. 2021, tables 2 and 3: milliseconds on a TITAN XP, N = 192, 768x512 (Kodak) and 1200x1200 (Tecnick), entropy
decoding left out. Here the systems of `fastcodec.models.zoo` decode a real payload on this machine: on its GPU if it
has one, else on its CPU. What the coder takes is measured, and left out of the comparison too. Weights are random: no
stage but the coder depends on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor

from fastcodec.kernels import rans
from fastcodec.models import zoo

from .common import console, mosaic, table

N = 192
SIZES = {"Kodak": (768, 512), "Tecnick": (1200, 1200)}
SECONDS = 20.0  # of repeating one case, at most
REPEATS = 5
STAGES = ("hyper synthesis", "parameter calculation", "latent synthesis")


class Row(NamedTuple):
    """A system, and the milliseconds of table 2 by image."""

    name: str
    label: str
    paper: dict[str, float]


ROWS = (
    Row("bmshj2018-hyperprior", "Ballé 2018, no context", {"Kodak": 26.34, "Tecnick": 83.28}),
    Row("mbt2018", "Minnen 2018, serial", {"Kodak": 1323.66, "Tecnick": 4977.98}),
    Row("mbt2018-checkerboard", "Minnen 2018, checkerboard", {"Kodak": 29.66, "Tecnick": 95.46}),
    Row("cheng2020-serial", "Cheng 2020, serial", {"Kodak": 1395.35, "Tecnick": 5296.16}),
    Row("cheng2020-checkerboard", "Cheng 2020, checkerboard", {"Kodak": 75.23, "Tecnick": 259.37}),
)
# Table 3: Minnen 2018 on Kodak.
PAPER_STAGES = {"mbt2018": (1.26, 1302.42, 20.98), "mbt2018-checkerboard": (1.42, 4.75, 23.49)}
PAIRS = (("mbt2018", "mbt2018-checkerboard"), ("cheng2020-serial", "cheng2020-checkerboard"))


class MismatchError(RuntimeError):
    """What was decoded is not what was encoded."""


def _model(name: str, device: torch.device) -> zoo.CompressionModel:
    torch.manual_seed(1)
    channels = (N,) if name.startswith("cheng") else (N, N)
    model = zoo.SYSTEMS[name].model(*channels)
    model.update()
    for weight in model.eval().requires_grad_(False).parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    return model.to(device)


def _image(width: int, height: int, stride: int, device: torch.device) -> Tensor:
    """Photographs, float32 [1, 3, H, W], the sides rounded up to multiples of the stride."""
    pixels = mosaic(-(-width // stride) * stride, -(-height // stride) * stride)
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device).float() / 255


@contextmanager
def _timed(model: zoo.CompressionModel, synchronize: Callable[[], None]) -> Iterator[dict[str, float]]:
    """Collects the seconds of g_s and h_s, of the coder, and in all."""
    seconds = {"g_s": 0.0, "h_s": 0.0, "coder": 0.0}

    def watched(function: Callable, name: str) -> Callable:
        def timed(*arguments: Any, **options: Any) -> Any:
            synchronize()
            start = time.perf_counter()
            result = function(*arguments, **options)
            synchronize()
            seconds[name] += time.perf_counter() - start
            return result

        return timed

    with ExitStack() as stack:
        for name in ("g_s", "h_s"):
            module: torch.nn.Module = getattr(model, name)
            stack.enter_context(patch.object(module, "forward", watched(module.forward, name)))
        for name in ("__init__", "decode", "finish"):
            stack.enter_context(patch.object(rans.Decoder, name, watched(getattr(rans.Decoder, name), "coder")))
        synchronize()
        begin = time.perf_counter()
        yield seconds
        synchronize()
        seconds["total"] = time.perf_counter() - begin


def measure(name: str, width: int, height: int, device: torch.device) -> dict[str, Any]:
    """Milliseconds of each stage, medians over repeats; symbols and bytes of the payload."""
    model = _model(name, device)
    x = _image(width, height, model.stride, device)
    compressed = model.compress(x)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    samples: list[dict[str, float]] = []
    images: list[Tensor] = []
    begin = time.perf_counter()
    # The first is not counted: caches, and on a GPU the choice of algorithms.
    while len(samples) <= REPEATS and (len(samples) < 2 or time.perf_counter() - begin < SECONDS):
        with _timed(model, synchronize) as seconds:
            images = [*images[-1:], model.decompress(compressed.payload, compressed.shape)]
        samples.append(seconds)
    if not torch.equal(images[0], images[-1]):
        raise MismatchError(f"{name}: decoding twice gave two images")
    stages = []
    for sample in samples[1:]:
        rest = sample["total"] - sample["g_s"] - sample["h_s"] - sample["coder"]
        stages.append((sample["h_s"], rest, sample["g_s"], sample["coder"]))
    milliseconds = [1e3 * median(stage) for stage in zip(*stages, strict=True)]
    return {
        **dict(zip((*STAGES, "coder"), milliseconds, strict=True)),
        "network": sum(milliseconds[:3]),
        "latents": compressed.shape[0] * compressed.shape[1],
        "bytes": len(compressed.payload),
        "repeats": len(samples) - 1,
    }


def run(device: torch.device | None = None, sizes: dict[str, tuple[int, int]] | None = None) -> dict[str, Any]:
    """Both tables, and the ratios of serial to checkerboard. device, sizes: for the tests."""
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    figures: dict[str, dict[str, Any]] = {}
    for image, (width, height) in (sizes or SIZES).items():
        figures[image] = {row.name: measure(row.name, width, height, device) for row in ROWS}
        shown = table(
            f"{image}, {width} x {height}: milliseconds on {where}",
            "",
            *("h_s", "g_cm, g_ep", "g_s", "all three", "paper", "coder"),
        )
        for row in ROWS:
            found = figures[image][row.name]
            cells = [f"{found[stage]:.4g}" for stage in (*STAGES, "network")]
            shown.add_row(row.label, *cells, f"{row.paper[image]:.4g}", f"{found['coder']:.3g}")
        console.print(shown)
    papers = {row.name: row.paper for row in ROWS}
    ratios: dict[str, Any] = {}
    for image, found in figures.items():
        for serial, parallel in PAIRS:
            ours = found[serial]["network"] / found[parallel]["network"]
            theirs = papers[serial][image] / papers[parallel][image]
            ratios.setdefault(image, {})[serial] = {"ours": ours, "paper": theirs}
            console.print(f"{image}: {serial} takes {ours:.1f} times as long as {parallel}; paper: {theirs:.1f}")
    return {
        "device": where,
        "channels": N,
        "milliseconds": figures,
        "serial_over_checkerboard": ratios,
        "paper": {"table 2": papers, "table 3 (Kodak)": PAPER_STAGES},
    }
