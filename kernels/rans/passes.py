"""What the coder codes at a time, and what must hold of it."""

from typing import NamedTuple

from torch import Tensor, dtype, int16, int32, uint8

from .tables import TableSet

MAX_COMPONENTS = 4  # of a mixture: mixture.h's kMixtureComponents, and a test compares


class Pass(NamedTuple):
    """What is coded together by tables: positions row-major, channels fastest; all contiguous and on one device."""

    symbols: Tensor  # int16 or int32 [P, C]; values must fit int16, and be 0 where nothing is coded
    indexes: Tensor  # uint8 [P, C]; the table of each symbol, below tables.count
    tables: TableSet


class MixturePass(NamedTuple):
    """What is coded together by Gaussian mixtures of K components, 1 to 4; all contiguous and on one device."""

    symbols: Tensor  # int16 or int32 [P, C]; values must fit int16
    weights: Tensor  # int16 [K, P, C], in units of 2^-12, at least 0; the K of an element sum to 4096
    means: Tensor  # int16 [K, P, C], with 6 fraction bits
    scales: Tensor  # uint8 [K, P, C]; sigma = 2^((scale - 80) / 24)


def _described(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}{'' if tensor.is_contiguous() else ', not contiguous'}"


def check_indexes(indexes: Tensor, what: str) -> None:
    """Raises ValueError, naming `what`, unless the tensor can be a pass's indexes."""
    if indexes.dtype != uint8 or indexes.dim() != 2 or not indexes.is_contiguous():
        raise ValueError(
            f"{what}: indexes must be a contiguous uint8 matrix [positions, channels], not {_described(indexes)}"
        )


def check_mixtures(weights: Tensor, means: Tensor, scales: Tensor, what: str) -> None:
    """Raises ValueError, naming `what`, unless the tensors can be a pass's parameters. Values are not looked at."""
    kinds: tuple[tuple[str, Tensor, dtype], ...] = (
        ("weights", weights, int16),
        ("means", means, int16),
        ("scales", scales, uint8),
    )
    for name, tensor, kind in kinds:
        if tensor.dtype != kind or tensor.dim() != 3 or tensor.shape != weights.shape or not tensor.is_contiguous():
            raise ValueError(
                f"{what}: {name} must be contiguous, {kind}, [components, positions, channels], not "
                f"{_described(tensor)}"
            )
        if tensor.device != weights.device:
            raise ValueError(f"{what}: {name} are on {tensor.device}, weights on {weights.device}")
    if not 1 <= weights.shape[0] <= MAX_COMPONENTS:
        raise ValueError(f"{what}: a mixture has 1 to {MAX_COMPONENTS} components, not {weights.shape[0]}")


def check_pass(item: Pass | MixturePass, what: str) -> None:
    """Raises ValueError, naming `what`, unless the pass's tensors fit together. Their values are not looked at."""
    symbols = item.symbols
    if isinstance(item, MixturePass):
        check_mixtures(item.weights, item.means, item.scales, what)
        name, shape, where = "parameters", item.weights.shape[1:], item.weights.device
    else:
        check_indexes(item.indexes, what)
        name, shape, where = "indexes", item.indexes.shape, item.indexes.device
    if symbols.dtype not in (int16, int32) or symbols.shape != shape or not symbols.is_contiguous():
        raise ValueError(
            f"{what}: symbols must be contiguous, int16 or int32, and of the {name}' shape {list(shape)}, not "
            f"{_described(symbols)}"
        )
    if symbols.device != where:
        raise ValueError(f"{what}: symbols are on {symbols.device}, {name} on {where}")
