"""What the C interfaces of both hosts report, and the exceptions that it becomes."""

from enum import IntEnum

from ..errors import CorruptStreamError, FastcodecError, SymbolRangeError


class Status(IntEnum):
    """status.h's enum Status: what a function returned."""

    OK = 0
    NO_MEMORY = 1
    BAD_TABLES = 2
    INTERNAL = 3
    INDEX_RANGE = 4
    SYMBOL_RANGE = 5
    SYMBOL_SKIPPED = 6
    WEIGHTS = 7
    TOO_LARGE = 8
    DRIVER = 9


_RAISED: dict[Status, tuple[type[Exception], str]] = {
    Status.NO_MEMORY: (MemoryError, "the entropy coder ran out of memory"),
    Status.BAD_TABLES: (ValueError, "tables are out of bounds"),
    Status.INDEX_RANGE: (ValueError, "an index names no table of its set"),
    Status.SYMBOL_RANGE: (SymbolRangeError, "a symbol does not fit int16"),
    Status.SYMBOL_SKIPPED: (SymbolRangeError, "a symbol that is not coded (table index 0) is not 0"),
    Status.WEIGHTS: (ValueError, "the weights of an element do not sum to 4096"),
    Status.TOO_LARGE: (ValueError, "too large for a GPU: a pass of a tile, and a batch's words, must stay below 2^32"),
}

_OF_TENSORS = (Status.INDEX_RANGE, Status.SYMBOL_RANGE, Status.SYMBOL_SKIPPED, Status.WEIGHTS)

# The last two of rans.h's enum Error: what a GPU finds while it decodes, and the CPU coder refuses before.
_PARAMETER_ERRORS = {12: Status.INDEX_RANGE, 13: Status.WEIGHTS}


def check_status(status: int, origin: str = "") -> None:
    """Raises what a status other than OK deserves.

    origin: where a fault of the caller's tensors was found, such as "tile 1, pass 0: ".
    """
    if status in _RAISED:
        kind, text = _RAISED[Status(status)]
        raise kind(origin + text if status in _OF_TENSORS else text)
    if status:
        raise FastcodecError(f"the entropy coder failed (status {status})")


def check_error(error: int, tile: int, text: str) -> None:
    """Raises what rans.h's Error in a tile deserves, unless it is 0; `text` is the library's text for it."""
    if error in _PARAMETER_ERRORS:
        check_status(_PARAMETER_ERRORS[error], f"tile {tile}: ")
    if error:
        raise CorruptStreamError(f"corrupt payload of tile {tile}: {text}", tile, text)
