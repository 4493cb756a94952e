"""The root of every error that fastcodec raises on purpose, and the coder's own errors.

They live beside the kernels because imports run one way (command line -> codec -> container -> entropy -> kernels);
`fastcodec.errors` re-exports them and adds the errors of the upper layers.
"""


class FastcodecError(Exception):
    """Base of all fastcodec errors: catching it catches everything that the library raises on purpose."""


class CorruptStreamError(FastcodecError, ValueError):
    """Bytes that no encoder of this format wrote: truncated, extended, bit-flipped or forged.

    tile: where it was found in a batch of payloads, if that is known.
    """

    def __init__(self, message: str, tile: int | None = None) -> None:
        super().__init__(message)
        self.tile = tile


class SymbolRangeError(FastcodecError, ValueError):
    """A symbol that the format cannot carry (outside int16), met while encoding."""


class UnavailableError(FastcodecError):
    """What was asked for cannot run on this machine: the message says what is missing."""
