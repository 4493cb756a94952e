"""From probabilities to the coder's tables, by way of CompressAI's 16-bit CDFs, which its checkpoints carry."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ...kernels.rans import TableSet
from ...kernels.rans.tables import MAX_TABLES

CDF_BITS = 16

# An entry of a coder's table costs 2^-14 of the probability however rare its symbol is. Tables of few entries keep all
# of them, since latents have heavier tails than their model; beyond so many on either side only what occurs pays.
_KEPT_REACH = 400


def quantised_cdf(pmf: np.ndarray, tail_mass: float) -> np.ndarray:
    """The CDF of a distribution and its tail in integers of 2^-16: int32 [K + 2], from 0 to 2^16, strictly rising.

    pmf: float64 [K], the probabilities of consecutive symbols; tail_mass: that of all others.
    """
    mass = np.append(pmf, tail_mass)
    mass = mass / mass.sum()
    spare = (1 << CDF_BITS) - mass.size  # beyond the one unit that each entry needs
    exact = mass * spare
    frequencies = np.floor(exact).astype(np.int64)
    left = spare - int(frequencies.sum())
    frequencies[np.argsort(frequencies - exact, kind="stable")[:left]] += 1
    return np.concatenate([[0], np.cumsum(frequencies + 1)]).astype(np.int32)


def stack_cdfs(cdfs: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """CDFs of several lengths as one matrix, int32 [n, longest], zero past their ends, and their lengths, int32 [n]."""
    lengths = torch.tensor([len(cdf) for cdf in cdfs], dtype=torch.int32, device="cpu")
    matrix = torch.zeros(len(cdfs), int(lengths.max()), dtype=torch.int32, device="cpu")
    for row, cdf in zip(matrix, cdfs, strict=True):
        row[: len(cdf)] = torch.from_numpy(cdf)
    return matrix, lengths


def _trimmed(first: int, frequencies: np.ndarray) -> tuple[int, np.ndarray, float]:
    """First symbol, probabilities and tail mass, without the far entries that have but the least frequency."""
    inside, total = frequencies[:-1], 1 << CDF_BITS
    symbols = first + np.arange(inside.size)
    kept = np.flatnonzero((inside > 1) | (np.abs(symbols) <= _KEPT_REACH))
    if kept.size == 0:  # a distribution whose support is far from 0
        kept = np.array([int(np.argmax(inside))])
    begin, end = int(kept[0]), int(kept[-1]) + 1
    pmf = inside[begin:end] / total
    return first + begin, pmf, 1.0 - float(pmf.sum())


def table_sets(cdf: Tensor, lengths: Tensor, offsets: Tensor) -> Iterator[TableSet]:
    """The coder's tables of quantised CDFs, as many to a set as it takes (256).

    cdf: int32 [n, longest]; lengths: int32 [n]; offsets: int32 [n], the symbols of the first entries. The last interval
    of each CDF is the mass of all other symbols, which are coded as escapes.
    """
    rows = cdf.cpu().numpy().astype(np.int64)
    tables = [
        _trimmed(first, np.diff(row[:length]))
        for row, length, first in zip(rows, lengths.tolist(), offsets.tolist(), strict=True)
    ]
    for begin in range(0, len(tables), MAX_TABLES):
        yield TableSet.from_pmfs(tables[begin : begin + MAX_TABLES])
