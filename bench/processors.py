"""What processors without AVX-512 make of it: this one, with its libraries and the coder limited, beside itself.

Each limit needs a process of its own, as libraries read theirs once. Processes take turns and count processor time, on
one thread, so that a busy machine slows all alike: the ratios hold, the times are this machine's. A limited processor
is not an older one: its memory, caches and clock stay. The rows "in bfloat16" are what "fast" decoding and training
would take if they insisted on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

from .coder import KODAK_SYMBOLS, draw, own_coder
from .common import CannotRunError, console, kodak, released, table

LIMITS = {
    "all": {},
    "AVX-512 without VNNI and bfloat16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
    "AVX2": {
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FASTCODEC_ISA": "avx2",
    },
}
IMAGES = 4  # of the 24, every sixth
ROUNDS = 5
QUALITY = 60
BATCH, CROP = 1, 256  # of a training step


def run() -> dict[str, Any]:
    """Milliseconds an image and a training step, medians over rounds, and how many times as long as without limits."""
    samples: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in LIMITS}
    facts: dict[str, dict[str, Any]] = {}
    for _ in range(ROUNDS):
        for name, limits in LIMITS.items():
            command = [sys.executable, "-P", "-c", "from bench import processors; processors.measure()"]
            environment = {**os.environ, **limits, "PYTHONPATH": os.getcwd()}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise CannotRunError(f"{name}: {done.stderr.strip().splitlines()[-1]}")
            found = json.loads(done.stdout.splitlines()[-1])
            facts[name] = found["facts"]
            for what, seconds in found["seconds"].items():
                samples[name][what].append(seconds)
    times = {name: {what: median(values) for what, values in items.items()} for name, items in samples.items()}
    ratios = {
        name: {
            what: median(a / b for a, b in zip(samples[name][what], samples["all"][what], strict=True)) for what in item
        }
        for name, item in times.items()
    }
    shown = table("Milliseconds of processor time (times as long as without limits)", "", *LIMITS)
    for what in times["all"]:
        shown.add_row(what, *(f"{1000 * times[name][what]:.3g} ({ratios[name][what]:.2f})" for name in LIMITS))
    for fact in facts["all"]:
        shown.add_row(fact, *(str(facts[name][fact]) for name in LIMITS))
    console.print(shown)
    return {
        "images": IMAGES,
        "rounds": ROUNDS,
        "quality": QUALITY,
        "limits": LIMITS,
        "facts": facts,
        "seconds": times,
        "ratios": ratios,
    }


def measure() -> None:
    """One process's part: prints a line of JSON."""
    import torch

    from fastcodec import Codec
    from fastcodec.geometry import Rect
    from fastcodec.kernels import rans
    from fastcodec.kernels.processor import bfloat16_is_native
    from fastcodec.models.swift.network import Swift, SwiftConfig

    torch.set_num_threads(1)
    codec = Codec.load("swift", "cpu")
    pictures = [picture for _, picture in kodak()][:: 24 // IMAGES]
    seconds: dict[str, float] = {}

    def timed(what: str, step: Callable[[], Any], repeats: int = 2) -> None:
        step()
        best = float("inf")
        for _ in range(repeats):
            start = time.process_time()
            step()
            best = min(best, time.process_time() - start)
        seconds[what] = seconds.get(what, 0.0) + best

    for picture in pictures:
        data = codec.encode(picture, QUALITY)
        timed("encode", partial(codec.encode, picture, QUALITY))
        timed("decode, exact", partial(codec.decode, data, precision="exact"))
        timed("decode, fast", partial(codec.decode, data, precision="fast"))
    item = draw(KODAK_SYMBOLS, 1, 33)
    step_encode, step_decode, _ = own_coder(item, "size")
    timed("coder, encode", step_encode, 9)
    timed("coder, decode", step_decode, 9)
    window = Rect(0, 0, 32, 48)  # latents of a Kodak image
    y = torch.randn(1, released(codec).config.latents, window.height, window.width)
    y = y.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        for name, fast in (("float32", False), ("bfloat16", True)):
            timed(f"synthesis in {name}", partial(released(codec).g_s, y, torch.tensor([0.5]), fast=fast))
    model, x, t = Swift(SwiftConfig()), torch.rand(BATCH, 3, CROP, CROP), torch.rand(BATCH)
    for name, enabled in (("float32", False), ("bfloat16", True)):

        def step(enabled: bool = enabled) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                out = model(x, t)
            (out["x_hat"].float().square().mean() + out["y_bits"].mean() + out["z_bits"].mean()).backward()

        timed(f"training pass in {name}", step, 1)
    per_image = {k: v / len(pictures) if k[:6] in ("encode", "decode") else v for k, v in seconds.items()}
    facts = {
        "bfloat16": "native" if bfloat16_is_native() else "emulated",
        "entropy side": released(codec).entropy.backend,
        "coder": os.environ.get("FASTCODEC_ISA") or rans.available_isas()[-1],
    }
    print(json.dumps({"seconds": per_image, "facts": facts}))
