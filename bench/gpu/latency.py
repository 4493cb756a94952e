"""The suite "latency": what one image after the other takes, from bytes to pixels on the device and back.

Besides one file again and again, which is how a latency is measured, it decodes many different ones, round after round:
in the first round shapes are met for the first time, in the second they are captured, and later ones replay. That is
what a program sees that decodes a folder. What is timed is checked: latents of the CPU's files are equal bit for bit,
pixels within one level.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastcodec.codec import Codec, Preset

from ..stages import STAGES, TOTAL, Profile, by_stage, profiled
from ._subject import PRESETS, QUALITY, Subject, near, same
from ._timing import elapsed, gpu_times, rounds, spread, wall_times
from .measure import Suite
from .rates import decode_rate

GOALS_MS = {(768, 512): 1.0, (1920, 1080): 3.0}  # from bytes to pixels on the device, latency preset


def card(it: Subject) -> dict[str, Any]:
    """The machine: its name, clocks and software."""
    asked = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        told = f"no nvidia-smi: {error}"
    try:
        import triton
    except ImportError:
        triton = None
    return {
        "card": it.machine.name,
        "multiprocessors": it.machine.multiprocessors,
        "nvidia_smi": told,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": getattr(triton, "__version__", None),
        "pictures": it.photographs[0],
        "quality": QUALITY,
    }


def decode_into(codec: Codec, files: list[bytes], out: Tensor) -> None:
    """Decodes, and waits for the pixels."""
    codec.decode_tensor(files, out=out).check()


def by_graph(it: Subject, files: list[bytes], out: Tensor) -> dict[str, Any]:
    """Decoding as a program does that does it often: by the host's clock, by the GPU's, and the host's share."""
    decode = partial(it.codec.decode_tensor, files, out=out)
    for _ in range(it.sizes.warm_ups):
        decode().check()
    hosts = []
    for _ in rounds(it.sizes.repeats):
        hosts.append(elapsed(decode))
        it.machine.synchronize()
    wall = wall_times(it.machine, partial(decode_into, it.codec, files, out), it.sizes.repeats)
    on_gpu = gpu_times(it.machine, decode, float(np.median(hosts)), it.sizes.repeats)
    return {"wall": spread(wall), "gpu": spread(on_gpu), "host": spread(hosts)}


def by_launches(it: Subject, files: list[bytes], out: Tensor) -> list[Profile]:
    """Profiles of decoding launch by launch, as a codec does that meets a shape for the first time."""
    codecs = [it.fresh_codec() for _ in range(it.sizes.profiles)]
    return [profiled(partial(decode_into, codec, files, out)) for codec in codecs]


def stages_us(profiles: Sequence[Profile]) -> dict[str, float]:
    """The median of each stage, of what is in none, and of all."""
    found = [by_stage(item) for item in profiles]
    return {stage: 1e3 * float(np.median([row[stage] for row in found])) for stage in (*STAGES, "other", TOTAL)}


def decode_graph(it: Subject, size: tuple[int, int], preset: Preset) -> dict[str, Any]:
    """One file through the graph. Pixels are checked."""
    data, out = it.file(size, preset), it.pixels([it.picture(size)])
    row = by_graph(it, [data], out)
    near(out, [it.cpu.decode(data, out="picture").pixels], "decoded by a graph")
    if preset == "latency" and (goal := GOALS_MS.get(size)):
        row |= {"goal_ms": goal, "reached": row["wall"]["median_ms"] <= goal}
    rate = {"bytes": len(data), "bpp": 8 * len(data) / (size[0] * size[1]), "quality": it.quality}
    return {**rate, **row, "sm_mhz": it.machine.nvml.sm_mhz()}


def decode_stages(it: Subject, size: tuple[int, int], preset: Preset) -> dict[str, Any]:
    """One file launch by launch: what the kernels and copies of each stage take. Pixels are checked."""
    data, out = it.file(size, preset), it.pixels([it.picture(size)])
    row = {"stages_us": stages_us(by_launches(it, [data], out))}
    near(out, [it.cpu.decode(data, out="picture").pixels], "decoded by launches")
    return row


def equal_latents(it: Subject, size: tuple[int, int]) -> dict[str, Any]:
    """Latents of the CPU's files are equal bit for bit, and the GPU's files' on the CPU."""
    for preset in PRESETS:
        data = it.file(size, preset)
        written = it.codec.encode(it.picture(size), it.quality, preset)
        same(it.codec.latents(data), it.cpu.latents(data), f"latents of the CPU's file, {preset}")
        same(it.codec.latents(written), it.cpu.latents(written), f"latents of the GPU's file, {preset}")
    return {"equal": True}


def decode_many(it: Subject, preset: Preset, qualities: Sequence[int] = (QUALITY,)) -> dict[str, Any]:
    """Different files one after the other, each waited for, in rounds: from bytes to pixels on the device."""
    chosen = [(picture, qualities[number % len(qualities)]) for number, picture in enumerate(it.many)]
    files = [it.cpu_file(picture, f"many{n}", preset, quality) for n, (picture, quality) in enumerate(chosen)]
    outs = {picture.pixels.shape: it.pixels([picture]) for picture in it.many}
    codec, times = it.fresh_codec(), list[list[float]]()
    for _ in range(it.sizes.rounds):
        pairs = zip(it.many, files, strict=True)
        calls = [partial(decode_into, codec, [data], outs[picture.pixels.shape]) for picture, data in pairs]
        times.append([wall_times(it.machine, call, 1)[0] for call in calls])
    near(outs[it.many[-1].pixels.shape], [it.cpu.decode(files[-1], out="picture").pixels], "the last of many")
    home = [elapsed(partial(codec.decode, data, out="picture")) for data in files]
    later = [seconds for row in times[2:] for seconds in row]
    return {
        "files": len(files),
        "qualities": list(qualities),
        "sizes": len(outs),
        "first_round": spread(times[0]),
        "second_round": spread(times[1]),
        "later_rounds": spread(later),
        "brought_home": spread(home),
        "slowest_ms": 1e3 * max(later),
    }


def encode_one(it: Subject, size: tuple[int, int], preset: Preset) -> dict[str, Any]:
    """One picture from pixels on the host to bytes, by the host's clock; and the stages' kernels and copies."""
    encode = partial(it.codec.encode, it.picture(size), it.quality, preset)
    for _ in range(it.sizes.warm_ups):
        data = encode()
    row = {"bytes": len(data), "wall": spread(wall_times(it.machine, encode, it.sizes.repeats))}
    return {**row, "stages_us": stages_us([profiled(encode)])}


def encode_many(it: Subject, preset: Preset) -> dict[str, Any]:
    """Different pictures one after the other, from pixels on the host to bytes."""
    times = [[elapsed(partial(it.codec.encode, p, QUALITY, preset)) for p in it.many] for _ in range(3)]
    return {"first_round": spread(times[0]), "later_rounds": spread([*times[1], *times[2]])}


def decode_cpu(it: Subject, size: tuple[int, int]) -> dict[str, Any]:
    """The same on this machine's CPU, all its cores."""
    decode = partial(it.cpu.decode, it.file(size, "size"), out="picture")
    return {"threads": torch.get_num_threads(), "decode": spread([elapsed(decode) for _ in rounds(5)])}


def parts(folder: Path, subject: Subject | None = None) -> Suite:
    """All of them, what matters most first: time may end."""
    it, suite = subject or Subject(folder), Suite()
    (name, first), *larger = [(f"{width}x{height}", (width, height)) for width, height in it.sizes.images]

    def both(what: str, body: Callable[..., dict[str, Any]], *arguments: Any, seconds: float = 3.0) -> None:
        for preset in PRESETS:
            suite.add(f"{what}, {preset}", body, it, *arguments, preset, first=seconds)

    suite.add("card", card, it)
    both(f"decode {name}, graph", decode_graph, first)
    both(f"decode {it.sizes.many} files", decode_many, seconds=8.0)
    both(f"decode {name}, stages", decode_stages, first)
    suite.add(f"latents {name}", equal_latents, it, first)
    for other, size in larger[:1]:
        both(f"decode {other}, graph", decode_graph, size)
    both(f"encode {name}", encode_one, first)
    for count in it.sizes.batches[:2]:
        suite.add(f"decode rate, batch {count}", decode_rate, it, count)
    for other, size in larger[:1]:
        both(f"decode {other}, stages", decode_stages, size)
    mixed = (20, 40, 60, 80, 95)
    suite.add(f"decode {it.sizes.many} files of many qualities, latency", decode_many, it, "latency", mixed)
    for other, size in larger[1:]:
        both(f"decode {other}, graph", decode_graph, size, seconds=10.0)
        both(f"decode {other}, stages", decode_stages, size)
    for other, size in larger:
        both(f"encode {other}", encode_one, size, seconds=8.0)
    suite.add(f"encode {it.sizes.many} files, latency", encode_many, it, "latency")
    suite.add(f"decode {name} on the CPU", decode_cpu, it, first)
    for other, size in larger[:1]:
        suite.add(f"latents {other}", equal_latents, it, size, first=10.0)
    return suite
