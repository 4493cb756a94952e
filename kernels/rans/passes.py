"""What the coder codes at a time, and what must hold of it."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, dtype, int16, int32, uint8

from .tables import TableSet

MAX_COMPONENTS = 4  # of a mixture: mixture.h's kMixtureComponents, and a test compares


class Pass(NamedTuple):
    """What is coded together by tables: P positions, row-major, of C channels, which lie fastest.

    All tensors are contiguous and on one device. `encode` checks them.

    Attributes:
        symbols: int16 or int32 [P, C]. Values fit int16, and are 0 where nothing is coded (index 0 of a set with skip).
        indexes: uint8 [P, C], the table of each symbol, below `tables.count`.
        tables: the distributions.
    """

    symbols: Tensor
    indexes: Tensor
    tables: TableSet


class Mixture(NamedTuple):
    """The distributions of P positions of C channels: Gaussian mixtures of K components, 1 to 4, in integers.

    All tensors are contiguous and on one device.

    Attributes:
        weights: int16 [K, P, C], in units of 2^-12, at least 0; the K of an element sum to 4096.
        means: int16 [K, P, C], in units of 2^-6 of a symbol.
        scales: uint8 [K, P, C], the logarithms of standard deviations: sigma = 2^((scale - 80) / 24) symbols.
    """

    weights: Tensor
    means: Tensor
    scales: Tensor


class MixturePass(NamedTuple):
    """What is coded together by Gaussian mixtures: P positions, row-major, of C channels, which lie fastest.

    All tensors are contiguous and on one device. `encode` checks them. `MixturePass(symbols, *mixture)` makes one of a
    `Mixture`.

    Attributes:
        symbols: int16 or int32 [P, C]. Values fit int16.
        weights, means, scales: as those of a `Mixture`, [K, P, C] each.
    """

    symbols: Tensor
    weights: Tensor
    means: Tensor
    scales: Tensor


AnyPass = Pass | MixturePass


class Latents(NamedTuple):
    """Where a decoded pass's values, times a gain, go as the synthesis reads them.

    Attributes:
        tiles: for each tile, float32, float16 or bfloat16 [rows, columns, C]: a part of a larger raster, and of its
            channels. Positions of the other half of the checkerboard are left as they are.
        gain: float32 [C].
        anchors: whether the pass's positions are those with (row + column) even, or the others.
    """

    tiles: Sequence[Tensor]
    gain: Tensor
    anchors: bool = True


class Reconstruction(NamedTuple):
    """What decoded symbols become, checked: values and, unless `latents` is empty, latents. See `Decoder.reconstruct`.

    The fields are the last arguments of the operator `rans_reconstruct`, in its order.
    """

    means: Sequence[Tensor]
    mean_bits: int
    gain: Tensor | None
    values: Sequence[Tensor]
    latents: Sequence[Tensor]
    anchors: bool


class EncodeOptions(NamedTuple):
    """How to encode, checked: the last arguments of the operator `rans_encode`, in its order.

    lanes and streams of 0 leave them to the preset; an empty isa is the best one.
    """

    preset: str
    lanes: int
    streams: int
    threads: int
    isa: str


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
        name, shape, device = "parameters", item.weights.shape[1:], item.weights.device
    else:
        check_indexes(item.indexes, what)
        name, shape, device = "indexes", item.indexes.shape, item.indexes.device
    if symbols.dtype not in (int16, int32) or symbols.shape != shape or not symbols.is_contiguous():
        raise ValueError(
            f"{what}: symbols must be contiguous, int16 or int32, and of the {name}' shape {list(shape)}, not "
            f"{_described(symbols)}"
        )
    if symbols.device != device:
        raise ValueError(f"{what}: symbols are on {symbols.device}, {name} on {device}")
