"""Kodak images through the whole codec, stage by stage, beside CompressAI's `mbt2018_mean` in the same run.

CompressAI's weights are random (time does not depend on them: it codes every symbol by the same steps), and its quality
4 is matched by the quality of ours whose rate is nearest to the 0.461 bpp that it has with its own weights. Ours is
timed from uint8 pixels to the bytes of a file and back; CompressAI from and to float tensors, strings apart. Stages are
of a second call, under the profiler, which takes a little longer than its share of the total.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import fmean, median
from typing import Any

import torch

from fastcodec import Codec
from fastcodec.codec import Precision
from fastcodec.images import Picture
from fastcodec.metrics import psnr

from . import rivals
from .common import CannotRunError, console, kodak, table
from .stages import STAGES, milliseconds

RIVAL_QUALITY = 4
RIVAL_BPP = 0.4606  # of its published curve
IMAGES = 8  # of the 24, every third
ROUNDS = 5
FAST_QUALITIES = (10, 40, 70, 100)
PRECISIONS: tuple[Precision, ...] = ("exact", "fast")
_HEADINGS = ("g_a", "hyper", "param.", "rANS", "g_s", "other")
RIVAL_STAGES = {"g_a": "analysis", "h_a": "hyper", "h_s": "hyper", "g_s": "synthesis"}


def run() -> dict[str, Any]:
    """Times in milliseconds, medians over images and rounds; the ratios; what "fast" costs in PSNR."""
    pictures = [picture for _, picture in kodak()]
    codec = Codec.load("swift", "cpu")
    some = pictures[::3][:IMAGES]
    quality = _matching_quality(codec, some)
    try:
        rival = _Rival()
    except CannotRunError as error:
        console.print(f"without CompressAI: {error}", markup=False, soft_wrap=True)
        rival = None

    samples: dict[str, list[dict[str, float]]] = defaultdict(list)
    files: dict[int, bytes] = {}
    for round_number in range(-1, ROUNDS):  # the first, untimed, warms caches and allocators
        for i, picture in enumerate(some):
            files[i] = codec.encode(picture, quality=quality)
            measured = {"encode": _timed(partial(codec.encode, picture, quality=quality))}
            for precision in PRECISIONS:
                call = partial(codec.decode, files[i], out="picture", precision=precision)
                measured[f"decode, {precision}"] = _timed(call)
            if rival and round_number < min(ROUNDS, 3):  # it is slow, and steady
                measured |= rival.measure(picture)
            if round_number >= 0:
                for name, seconds in measured.items():
                    samples[name].append(seconds)

    times = {name: _medians(items) for name, items in samples.items()}
    ratios: dict[str, float] = {}
    if rival:
        encode, decode = times["rival encode"]["total"], times["rival decode"]["total"]
        ratios = {
            "encode": encode / times["encode"]["total"],
            "decode, exact": decode / times["decode, exact"]["total"],
            "decode, fast": decode / times["decode, fast"]["total"],
        }
    shown = table("Milliseconds a Kodak image (medians)", "", *_HEADINGS, "total", "ratio")
    for name, item in times.items():
        cells = [f"{1000 * item[stage]:.3g}" if item.get(stage) else "–" for stage in (*STAGES, "other", "total")]
        shown.add_row(name, *cells, f"{ratios[name]:.2f}" if name in ratios else "")
    console.print(shown)
    console.print(
        "rival: CompressAI mbt2018_mean, quality 4, random weights; its rANS includes all but its networks", style="dim"
    )
    fast = _cost_of_fast(codec, pictures)
    return {
        "images": len(some),
        "rounds": ROUNDS,
        "threads": torch.get_num_threads(),
        "quality": quality,
        "bpp": fmean(8 * len(files[i]) / (p.width * p.height) for i, p in enumerate(some)),
        "seconds": times,
        "times_as_fast_as_compressai_mbt2018_mean_q4": ratios,
        "psnr_of_fast": fast,
    }


def _timed(call: Callable[[], object]) -> dict[str, float]:
    """Seconds by stage, and "total", which is measured apart."""
    start = time.perf_counter()
    call()
    total = time.perf_counter() - start
    stages = {stage: ms / 1e3 for stage, ms in milliseconds(call).items()}
    return {**stages, "total": total}


def _medians(items: list[dict[str, float]]) -> dict[str, float]:
    return {stage: median(item[stage] for item in items) for stage in items[0]}


def _matching_quality(codec: Codec, pictures: list[Picture]) -> int:
    """The quality whose mean rate is nearest to the rival's, by bisection."""

    def rate(quality: int) -> float:
        return fmean(8 * len(codec.encode(p, quality=quality)) / (p.width * p.height) for p in pictures)

    low, high = 1, 100
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if rate(middle) < RIVAL_BPP else (low, middle)
    return min(low, high, key=lambda q: abs(rate(q) - RIVAL_BPP))


def _cost_of_fast(codec: Codec, pictures: list[Picture]) -> list[dict[str, float]]:
    """PSNR at "exact" and at "fast", means over all images."""
    shown = table("What the fast precision costs", "quality", "PSNR exact", "PSNR fast", "loss dB", "worst image")
    out = []
    for quality in FAST_QUALITIES:
        found: dict[Precision, list[float]] = {precision: [] for precision in PRECISIONS}
        for picture in pictures:
            data = codec.encode(picture, quality=quality)
            for precision, values in found.items():
                values.append(psnr(picture.pixels, codec.decode(data, precision=precision, out="picture").pixels))
        losses = [a - b for a, b in zip(found["exact"], found["fast"], strict=True)]
        item = {
            "quality": quality,
            "psnr_exact": fmean(found["exact"]),
            "psnr_fast": fmean(found["fast"]),
            "loss": fmean(losses),
            "worst_loss": max(losses),
        }
        shown.add_row(str(quality), *(f"{item[key]:.3f}" for key in list(item)[1:]))
        out.append(item)
    console.print(shown)
    return out


class _Rival:
    """CompressAI's mbt2018_mean with random weights, each of its networks timed by hooks."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = rivals.load().zoo.mbt2018_mean(RIVAL_QUALITY, pretrained=False).eval()
        self.model.update(force=True)
        self.stages: dict[str, float] = {}
        for name, stage in RIVAL_STAGES.items():
            self._watch(getattr(self.model, name), stage)

    def _watch(self, module: torch.nn.Module, stage: str) -> None:
        started: list[float] = []
        module.register_forward_pre_hook(lambda *_: started.append(time.perf_counter()))

        def stop(*_: Any) -> None:
            self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - started.pop()

        module.register_forward_hook(stop)

    @torch.inference_mode()
    def measure(self, picture: Picture) -> dict[str, dict[str, float]]:
        x = torch.from_numpy(picture.pixels).permute(2, 0, 1)[None].float() / 255
        strings: dict[str, Any] = {}

        def timed(step: Any) -> dict[str, float]:
            self.stages = {}
            start = time.perf_counter()
            step()
            total = time.perf_counter() - start
            # What is no network is entropy coding.
            return {**self.stages, "rans": total - sum(self.stages.values()), "total": total}

        return {
            "rival encode": timed(lambda: strings.update(self.model.compress(x))),
            "rival decode": timed(lambda: self.model.decompress(**strings)),
        }
