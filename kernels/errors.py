"""The root of every error that fastcodec raises on purpose, and the coder's own errors.

They live beside the kernels because imports run one way (command line -> codec -> container -> entropy -> kernels);
`fastcodec.errors` re-exports them and adds the errors of the upper layers.
"""

from __future__ import annotations


class FastcodecError(Exception):
    """Base of all fastcodec errors: catching it catches everything that the library raises on purpose."""


class CorruptStreamError(FastcodecError, ValueError):
    """Bytes that no encoder of this format wrote: truncated, extended, bit-flipped or forged.

    tile: where it was found in a batch of payloads, if that is known; cause: what is wrong there, in a text that does
    not name the tile (the message itself, unless given).
    """

    def __init__(self, message: str, tile: int | None = None, cause: str | None = None) -> None:
        super().__init__(message)
        self.tile = tile
        self.cause = message if cause is None else cause

    def for_tile(self, number: int) -> CorruptStreamError:
        """The same error, told of tile `number` of a file."""
        return CorruptStreamError(f"tile {number} is damaged: {self.cause}", number, self.cause)


class SymbolRangeError(FastcodecError, ValueError):
    """A symbol that the format cannot carry (outside int16), met while encoding."""


class UnavailableError(FastcodecError):
    """What was asked for cannot run on this machine: the message says what is missing."""
