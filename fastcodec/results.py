"""What the codec returns: files with their estimates, and pixels that may still be on their way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import calls


class Encoded(bytes):
    """A .fic file, and what the entropy model expected of it.

    estimated_bits: the float64 code length of the symbols under a Gaussian at the table's scale (p >= 1e-9), or in the
    release's own tables, and under the hyper latents' prior, and the bits of lossless tiles; the file is larger by the
    coder's loss, its states and the container. quality: 1..100, which matters where a size was asked for.
    """

    estimated_bits: float
    quality: int

    def __new__(cls, data: bytes, estimated_bits: float, quality: int) -> Encoded:
        self = super().__new__(cls, data)
        self.estimated_bits, self.quality = estimated_bits, quality
        return self

    def __reduce__(self) -> tuple:
        return Encoded, (bytes(self), self.estimated_bits, self.quality)


@dataclass(frozen=True)
class DecodedTensor:
    """Pixels on the codec's device, uint8 [files, 3, height, width]. They go to other libraries through DLPack."""

    pixels: Tensor
    _wait: Callable[[], object]

    @calls.counted
    def check(self) -> None:
        """Wait until the pixels are there. Raises CorruptStreamError, naming item and tile, for a damaged payload."""
        self._wait()

    def __reduce__(self) -> tuple:
        """Pickled and copied are pixels that are there: raises what `check` raises."""
        self.check()
        return DecodedTensor, (self.pixels, _no_wait)


def _no_wait() -> None:
    """Of pixels that are there."""
