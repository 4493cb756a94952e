"""Real files against the entropy model's estimate, on Kodak at many qualities and on 64x64 thumbnails.

The estimate is the float64 code length under the model's own Gaussians. What a file has beyond it: the tables' and the
coder's loss, the lanes' states, the directory, the container. A negative excess means that the integer tables, with
their escapes, code rare values in fewer bits than the Gaussian's tail would take.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastcodec import Codec, container
from fastcodec.images import Picture

from .common import console, kodak, show_claims, table

QUALITIES = (1, 5, *range(10, 101, 10))
FACTOR, FIXED_BYTES = 1.006, 44
LANES_SHARE = 0.003
THUMBNAIL, THUMBNAIL_BYTES = 64, 48


def run() -> dict[str, Any]:
    """For each quality: the sizes, the worst image against the bound, and what lanes and directory take."""
    codec = Codec.load("swift", "cpu")
    images = kodak()
    shown = table(
        f"Real files against estimates, {len(images)} Kodak images",
        "quality",
        "bytes",
        "overhead",
        "room B",
        "lanes",
        "worst",
        "thumb B",
    )
    rows = []
    for quality in QUALITIES:
        sizes, estimates, lanes, thumbnails = [], [], [], []
        for _, picture in images:
            encoded = codec.encode(picture, quality=quality)
            sizes.append(len(encoded))
            estimates.append(encoded.estimated_bits / 8)
            lanes.append(lanes_and_directory(encoded))
            small = codec.encode(_thumbnail(picture), quality=quality)
            thumbnails.append(len(small) - small.estimated_bits / 8)
        room = [FACTOR * estimate + FIXED_BYTES - size for size, estimate in zip(sizes, estimates, strict=True)]
        row = {
            "quality": quality,
            "bytes": sum(sizes),
            "estimated_bytes": sum(estimates),
            "overhead": sum(sizes) / sum(estimates) - 1,
            "least_room_bytes": min(room),
            "lanes_and_directory": sum(lanes) / sum(sizes),
            "worst_lanes_and_directory": max(lane / size for lane, size in zip(lanes, sizes, strict=True)),
            "thumbnail_worst_excess_bytes": max(thumbnails),
        }
        rows.append(row)
        shown.add_row(
            str(quality),
            f"{row['bytes']:,}",
            f"{100 * row['overhead']:.3f} %",
            f"{row['least_room_bytes']:.1f}",
            f"{100 * row['lanes_and_directory']:.3f} %",
            f"{100 * row['worst_lanes_and_directory']:.3f} %",
            f"{row['thumbnail_worst_excess_bytes']:.1f}",
        )
    console.print(shown)
    console.print(
        f"room: of the worst image to {FACTOR} x estimate + {FIXED_BYTES} bytes; lanes: states and directory, of the "
        f"file, in all and of the worst image; thumb: of the worst {THUMBNAIL}x{THUMBNAIL} crop beyond its estimate",
        style="dim",
    )
    return {"images": len(images), "holds": _claims(rows), "qualities": rows}


def _claims(rows: list[dict[str, Any]]) -> dict[str, bool]:
    """What should hold at every quality, and whether it does."""
    holds = {
        f"bytes <= {FACTOR} * estimate + {FIXED_BYTES}": all(row["least_room_bytes"] >= 0 for row in rows),
        f"lanes and directory <= {100 * LANES_SHARE} % at every quality": all(
            row["lanes_and_directory"] <= LANES_SHARE for row in rows
        ),
        f"thumbnail: bytes <= estimate + {THUMBNAIL_BYTES}": all(
            row["thumbnail_worst_excess_bytes"] <= THUMBNAIL_BYTES for row in rows
        ),
    }
    show_claims(holds)
    return holds


def lanes_and_directory(data: bytes) -> float:
    """Bytes of a file that go to the coder's shape, directory and states, beyond what the states carry.

    A state x holds log2(x) - 16 bits of message in its 32 (rans.h): a lane costs 48 - log2(x) bits.
    """
    file = container.read(data)
    total = 0.0
    for number in range(len(file.offsets)):
        payload = bytes(file.tile(number).payload)
        lanes, position = 1 << payload[0], 1
        streams, position = _varint(payload, position)
        for _ in range(2 * streams - 1):
            _, position = _varint(payload, position)
        states = np.frombuffer(payload, "<u4", streams * lanes, position)
        total += position + sum(48 - math.log2(x) for x in states.tolist()) / 8
    return total


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position


def _thumbnail(picture: Picture) -> Picture:
    top, left = (picture.height - THUMBNAIL) // 2, (picture.width - THUMBNAIL) // 2
    return Picture(picture.pixels[top : top + THUMBNAIL, left : left + THUMBNAIL].copy())
