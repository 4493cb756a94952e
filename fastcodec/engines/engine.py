"""The interface of the engines: one model on one device, between pixels and the payloads of tiles.

The codec (`codec.py`) knows files: headers, alpha, lossless tiles, which images go together. An engine knows networks
and the entropy coder. There are three: `cpu.py` and `gpu.py` for released models, which read and write the same files,
and `whole_image.py` for the systems of the papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..container import Container
from ..geometry import Grid, Rect


class Waiting(Protocol):
    """Work that is done, or that a GPU is doing."""

    def wait(self) -> object:
        """Wait until it is done. Raises CorruptStreamError for a damaged payload."""


class Decoded(Protocol):
    """Pixels that are there, or on their way from a GPU."""

    def wait(self) -> np.ndarray:
        """Wait for the pixels, uint8 [files, height, width, 3]. Raises CorruptStreamError for a damaged payload."""


class Engine(Protocol):
    """One model on one device. Any number of threads may share an engine."""

    #: Latents, over all images, that are worth coding together.
    batch_positions: int
    #: Whether files that are decoded together may be of several qualities.
    mixes_qualities: bool

    def send(self, pictures: Sequence[np.ndarray]) -> Any:
        """Begin to move images of equal size, uint8 [height, width, 3] or [height, width], to where they are coded."""

    def encode(self, sent: Any, grid: Grid, quality: int, preset: str) -> tuple[list[list[bytes]], list[list[float]]]:
        """Encode what `send` returned: the payloads of each image's tiles, and their estimated bits.

        Raises ImageError where the analysis gives no finite latents, SymbolRangeError where a symbol is beyond 16 bits.
        """

    def decode(self, files: Sequence[Container], area: Rect, precision: str) -> Decoded:
        """Decode a rectangle of pixels of files of equal size, whose lossless tiles are the same and left undefined.

        precision: "exact" or "fast". Raises CorruptStreamError, here or in `Decoded.wait`, UnsupportedError for what
        the model cannot do.
        """

    def decode_into(self, files: Sequence[Container], area: Rect, out: Tensor) -> Waiting:
        """Decode exactly, into a tensor on the engine's device, uint8 [files, height, width, 3] of any strides; the
        files may differ in quality. What is enqueued on the current stream from here on finds the pixels there."""

    def verify(self, file: Container) -> None:
        """Decode the symbols of every network tile, check states and cursors. Raises CorruptStreamError."""

    def latents(self, file: Container) -> Tensor:
        """The decoded latents [h, w, M]: int32 in 1/16 on the CPU, or, of a whole-image model, float on its device."""
