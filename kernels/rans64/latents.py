"""Latents to what `fastcodec.kernels.rans` codes, in one pass over memory, beside plain PyTorch references.

PyTorch's operators take twice as long, a quarter of the coder's own time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _library


def quantise_reference(
    latents: Tensor, means: Tensor | None, indexes: Tensor, tables: int
) -> tuple[Tensor, Tensor] | None:
    """Symbols round(latents - means), int16, and indexes mod 256, uint8; None unless all symbols fit and all indexes
    are below `tables`.

    Args:
        latents: float32, of any shape.
        means: float32, of the same shape, or None for 0.
        indexes: int32, of the same shape.
    """
    symbols = torch.round(latents if means is None else latents - means)
    if not ((symbols >= -32768) & (symbols <= 32767) & (indexes >= 0) & (indexes < tables)).all():
        return None
    return symbols.to(torch.int16), indexes.to(torch.uint8)


def quantise(latents: Tensor, means: Tensor | None, indexes: Tensor, tables: int) -> tuple[Tensor, Tensor] | None:
    """As `quantise_reference`; all tensors contiguous, on the CPU."""
    symbols = torch.empty(latents.shape, dtype=torch.int16, device="cpu")
    narrow = torch.empty(latents.shape, dtype=torch.uint8, device="cpu")
    good = _library.library().fastcodec_rans64_quantise(
        latents.numel(),
        latents.data_ptr(),
        None if means is None else means.data_ptr(),
        indexes.data_ptr(),
        tables,
        symbols.data_ptr(),
        narrow.data_ptr(),
    )
    return (symbols, narrow) if good else None


def quantise_rows_reference(latents: Tensor, means: Tensor) -> Tensor | None:
    """Symbols round(latents - means), int16; None unless all fit.

    Args:
        latents: float32 [B, C, n].
        means: float32 [C, 1], C at least 1.
    """
    symbols = torch.round(latents - means)
    return symbols.to(torch.int16) if ((symbols >= -32768) & (symbols <= 32767)).all() else None


def quantise_rows(latents: Tensor, means: Tensor) -> Tensor | None:
    """As `quantise_rows_reference`; both contiguous, on the CPU."""
    images, channels, columns = latents.shape
    symbols = torch.empty(latents.shape, dtype=torch.int16, device="cpu")
    good = _library.library().fastcodec_rans64_quantise_rows(
        images * channels, columns, latents.data_ptr(), means.data_ptr(), channels, symbols.data_ptr()
    )
    return symbols if good else None
