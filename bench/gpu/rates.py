"""Images a second of the codec in batches, and energy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from fastcodec import container
from fastcodec.codec import Codec, DecodedTensor

from ._subject import PRESETS, Batch, Subject, near, same
from ._timing import Meter, elapsed

IN_FLIGHT = 3  # batches that are enqueued before the first one is waited for
GOAL_IMAGES_S = 1500.0  # of batches of 768x512


def decode_again(codec: Codec, batch: Batch, it: Subject, going_on: Callable[[], bool]) -> int:
    """Decodes a batch's "size" files again and again, some ahead of the one that is waited for, as long as it is told
    to. Returns how often."""
    out, waiting, number = it.pixels(batch.pictures), deque[DecodedTensor](), 0
    while number == 0 or going_on():
        waiting.append(codec.decode_tensor(batch.files["size"], out=out))
        number += 1
        if len(waiting) > IN_FLIGHT:
            waiting.popleft().check()
    for decoded in waiting:
        decoded.check()
    return number


def rate(it: Subject, call: Callable[[], object], batch: Batch) -> dict[str, float]:
    """Images and megapixels a second of calls that code a batch each, one after the other."""
    for _ in range(it.sizes.warm_ups):
        call()
    it.machine.synchronize()
    number, start = 0, time.perf_counter()
    while number == 0 or time.perf_counter() - start < it.sizes.rate_seconds:
        call()
        number += 1
    it.machine.synchronize()
    return per_second(batch, number, time.perf_counter() - start)


def per_second(batch: Batch, number: int, seconds: float) -> dict[str, float]:
    return {"images_s": number * len(batch.pictures) / seconds, "mp_s": number * batch.megapixels / seconds}


def parse(codec: Codec, files: list[bytes]) -> None:
    """What decoding begins with on the host: headers are parsed, CRCs checked."""
    for data in files:
        parsed = container.read(data, codec.limits)
        for number in range(parsed.header.grid.tile_count):
            parsed.tile(number)


def decode_rate(it: Subject, count: int) -> dict[str, Any]:
    """Batches of this size from bytes on: with pixels that stay on the device, batches behind each other; and with
    pixels brought home, a batch at a time. And the host's share of the former. Pixels and latents are checked."""
    batch = it.batch(count)
    out, row = it.pixels(batch.pictures), dict[str, Any]()
    for preset, files in batch.files.items():
        decode = partial(it.codec.decode_tensor, files, out=out)
        for _ in range(it.sizes.warm_ups):
            decode().check()
        host = elapsed(decode)
        it.machine.synchronize()
        expected = [it.cpu.decode(data, out="picture").pixels for data in files[:2]]  # of all would take long
        near(out, expected, f"batch of {count}, {preset}")
        same(it.codec.latents(files[-1]), it.cpu.latents(files[-1]), f"latents of a batch of {count}, {preset}")
        row[preset] = {
            "bytes_an_image": sum(map(len, files)) / count,
            "brought_home": rate(it, partial(it.codec.decode_batch, files, out="picture"), batch),
            "host_us_an_image": 1e6 * host / count,
            "parsing_and_crc_us_an_image": 1e6 * elapsed(partial(parse, it.codec, files)) / count,
        }
    start = time.perf_counter()
    number = decode_again(it.codec, batch, it, lambda: time.perf_counter() - start < it.sizes.rate_seconds)
    row["on_device"] = per_second(batch, number, time.perf_counter() - start)
    return {**row, "goal_images_s": GOAL_IMAGES_S, "reached": row["on_device"]["images_s"] >= GOAL_IMAGES_S}


def encode_rate(it: Subject, count: int) -> dict[str, Any]:
    """Batches of this size from pixels on the host to files."""
    batch = it.batch(count)
    return {p: rate(it, partial(it.codec.encode_batch, batch.pictures, preset=p), batch) for p in PRESETS}


def energy(it: Subject, count: int) -> dict[str, Any]:
    """Joules a megapixel of decoding batches behind each other, pixels staying on the device; and the clocks."""
    batch = it.batch(count)
    for _ in range(it.sizes.warm_ups):
        decode_again(it.codec, batch, it, lambda: False)
    meter = Meter(it.machine.nvml)

    def going_on() -> bool:
        meter.sample()
        return meter.seconds < it.sizes.energy_seconds

    megapixels = decode_again(it.codec, batch, it, going_on) * batch.megapixels
    seconds, joules, measured = meter.stop()
    each = None if joules is None else joules / megapixels
    return {"seconds": seconds, "mp_s": megapixels / seconds, "joules_per_megapixel": each, **measured}
