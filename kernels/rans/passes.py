"""What the coder codes at a time, and what must hold of it."""

from typing import NamedTuple

from torch import Tensor, int16, int32, uint8

from .tables import TableSet


class Pass(NamedTuple):
    """What is coded together: positions row-major, channels fastest, both tensors contiguous and on one device."""

    symbols: Tensor  # int16 or int32 [P, C]; values must fit int16, and be 0 where nothing is coded
    indexes: Tensor  # uint8 [P, C]; the table of each symbol, below tables.count
    tables: TableSet


def _not_contiguous(tensor: Tensor) -> str:
    return "" if tensor.is_contiguous() else ", not contiguous"


def check_indexes(indexes: Tensor, what: str) -> None:
    """Raises ValueError, naming `what`, unless the tensor can be a pass's indexes."""
    if indexes.dtype != uint8 or indexes.dim() != 2 or not indexes.is_contiguous():
        raise ValueError(
            f"{what}: indexes must be a contiguous uint8 matrix [positions, channels], not {indexes.dtype} "
            f"{list(indexes.shape)}{_not_contiguous(indexes)}"
        )


def check_pass(item: Pass, what: str) -> None:
    """Raises ValueError, naming `what`, unless the pass's tensors fit together. Their values are not looked at."""
    symbols, indexes, _ = item
    check_indexes(indexes, what)
    if symbols.dtype not in (int16, int32) or symbols.shape != indexes.shape or not symbols.is_contiguous():
        raise ValueError(
            f"{what}: symbols must be contiguous, int16 or int32, and of the indexes' shape {list(indexes.shape)}, not "
            f"{symbols.dtype} {list(symbols.shape)}{_not_contiguous(symbols)}"
        )
    if symbols.device != indexes.device:
        raise ValueError(f"{what}: symbols are on {symbols.device}, indexes on {indexes.device}")
