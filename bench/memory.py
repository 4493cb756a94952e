"""Peak memory and time of one image from 1 to 100 megapixels, and what a 512x512 region of it costs.

Each step runs in a process of its own, so that its peak is its own: reading the image and encoding it; decoding the
file; decoding a region of it, once inside a tile and once across the corner of four.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from .common import console, mosaic, show_claims, table

MEGAPIXELS = (1, 4, 16, 50, 100)
QUALITY = 60
REGION = 512
LIMIT_BYTES = 4 * 10**9
REGION_SHARE = 0.05


def run(megapixels: Sequence[int] = MEGAPIXELS) -> dict[str, Any]:
    """For each size: peak bytes and seconds of encoding and decoding, and the regions' share of the decode's time."""
    shown = table(
        f"One image, quality {QUALITY}; memory: peak of the process; region: % of decoding",
        "MP",
        "file MB",
        "enc. MB",
        "dec. MB",
        "enc. s",
        "dec. s",
        "region",
        "seam",
        "levels",
    )
    rows = []
    for size in megapixels:
        row = _one(size)
        rows.append(row)
        regions = row["regions"]
        shown.add_row(
            f"{row['width'] * row['height'] / 1e6:.1f}",
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['encode']['peak_bytes'] / 1e6:.0f}",
            f"{row['decode']['peak_bytes'] / 1e6:.0f}",
            f"{row['encode']['seconds']:.2f}",
            f"{row['decode']['seconds']:.2f}",
            *(f"{100 * region['share_of_decode']:.2f}" for region in regions),
            str(max(region["largest_difference"] for region in regions)),
        )
    console.print(shown)
    largest = rows[-1]
    peak = max(largest["encode"]["peak_bytes"], largest["decode"]["peak_bytes"])
    share = max(region["share_of_decode"] for region in largest["regions"])
    differences = [region["largest_difference"] for row in rows for region in row["regions"]]
    holds = {
        f"under {LIMIT_BYTES / 1e9:.0f} GB at {largest['megapixels']} megapixels": peak < LIMIT_BYTES,
        f"a {REGION}x{REGION} region under {100 * REGION_SHARE:.0f} % of the decode there": share < REGION_SHARE,
        "regions equal the full decode's crop within one level": max(differences) <= 1,
    }
    show_claims(holds)
    return {"quality": QUALITY, "holds": holds, "sizes": rows}


def _one(megapixels: int) -> dict[str, Any]:
    width = round(math.sqrt(megapixels * 1.5e6))
    height = math.ceil(megapixels * 1e6 / width)
    with tempfile.TemporaryDirectory() as folder:
        source, file, full = (Path(folder) / name for name in ("image.ppm", "image.fic", "decoded.npy"))
        with source.open("wb") as stream:  # uncompressed: reading it is no part of the measurement
            stream.write(b"P6 %d %d 255\n" % (width, height))
            mosaic(width, height).tofile(stream)
        encode = _child("encode", source, file)
        decode = _child("decode", file, full)
        decoded = np.load(full, mmap_mode="r")
        regions = []
        tile = 1024
        corner = [max(0, side // tile // 2 * tile) for side in (width, height)]
        for where, shift in (("inside a tile", tile // 4), ("across four tiles", -REGION // 2)):
            x, y = (min(max(0, at + shift), side - REGION) for at, side in zip(corner, (width, height), strict=True))
            crop = Path(folder) / "region.npy"
            region = _child("region", file, crop, x, y)
            difference = np.abs(np.load(crop).astype(int) - decoded[y : y + REGION, x : x + REGION])
            regions.append(
                {
                    "where": where,
                    "x": x,
                    "y": y,
                    **region,
                    "share_of_decode": region["seconds"] / decode["seconds"],
                    "largest_difference": int(difference.max()),
                }
            )
        del decoded
        return {
            "megapixels": megapixels,
            "width": width,
            "height": height,
            "bytes": file.stat().st_size,
            "encode": encode,
            "decode": decode,
            "regions": regions,
        }


def _child(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.memory", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip()[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# ---- in the child


def _peak_bytes() -> int:
    """The peak of this process's resident memory. (ru_maxrss would not do: it begins with the parent's.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this benchmark reads /proc, so it needs Linux")


def _main(step: str, source: str, target: str, *place: str) -> None:
    from fastcodec import Codec
    from fastcodec.images import Picture, read_picture

    codec = Codec.load("swift", "cpu")
    noise = np.random.default_rng(1).integers(0, 256, (REGION, REGION, 3), dtype=np.uint8)
    codec.decode(codec.encode(Picture(noise), quality=QUALITY), out="picture")  # warms allocators and threads
    before = _peak_bytes()
    times = []
    if step == "encode":
        picture = read_picture(source)
        start = time.perf_counter()
        data = codec.encode(picture, quality=QUALITY)
        times.append(time.perf_counter() - start)
        Path(target).write_bytes(data)
        peak = _peak_bytes()
    else:
        file = Path(source).read_bytes()
        region = (int(place[0]), int(place[1]), REGION, REGION) if place else None
        for _ in range(5 if region else 1):
            start = time.perf_counter()
            picture = codec.decode(file, region=region, out="picture")
            times.append(time.perf_counter() - start)
        peak = _peak_bytes()
        np.save(target, picture.pixels)
    print(json.dumps({"seconds": median(times), "peak_bytes": peak, "loaded_bytes": before}))


if __name__ == "__main__":
    _main(*sys.argv[1:])
