"""Ways of coding a picture, ours and Pillow's, for comparisons of size and distortion."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from fastcodec import Codec
from fastcodec.images import Picture

#: AVIF at its best within reason: colours in full, at the speed that Pillow takes by itself.
AVIF_OPTIONS = {"subsampling": "4:4:4", "speed": 6}


@dataclass(frozen=True)
class Coder:
    """One way of coding a picture. encode: pixels to a file's bytes; decode: back to uint8 [H, W, 3]."""

    name: str
    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes], np.ndarray]


def ours(name: str, codec: Codec, **options: Any) -> Coder:
    """Ours with options of its encoder."""

    def encode(pixels: np.ndarray) -> bytes:
        return codec.encode(Picture(pixels), **options)

    return Coder(name, encode, lambda data: codec.decode(data, out="picture").pixels)


def pillow(name: str, format: str, **options: Any) -> Coder:
    """One of Pillow's encoders with its options."""

    def encode(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format, **options)
        return buffer.getvalue()

    def decode(data: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(data), formats=[format]) as image:
            return np.asarray(image.convert("RGB"))

    return Coder(name, encode, decode)
