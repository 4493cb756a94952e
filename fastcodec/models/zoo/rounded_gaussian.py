"""Latents rounded to integers, y^ = round(y), as Gaussians with any mean, which one-pass encoding needs.

He et al. 2021, section 4.3.1: all parameters can be had at once (equation 11) if y^ is known before its parameters are,
so it must not depend on mu as round(y - mu) + mu does. The symbol is y^ - round(mu); what is left of mu, a fraction of
at most 1/2, chooses among tables that are as fine as their scale asks for.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...kernels import rans
from ...kernels.rans.tables import MAX_TABLES
from .cdf import quantised_cdf, stack_cdfs, table_sets
from .entropy_bottleneck import LEAST_LIKELIHOOD
from .gaussian_conditional import LEAST_SCALE, GaussianConditional, gaussian_likelihood

# Width of a table's fractions of the mean, in scales. A mean that is off by d costs d^2 / (2 sigma^2) nats, so this
# costs 0.0026 on average, 0.2 % of the rate at sigma = 1. All scales together need fewer than the coder's 256 tables.
_STEP = 0.25


class RoundedGaussianConditional(GaussianConditional):
    """Codes y as y^ = round(y). Parameters as in `GaussianConditional`, with means; the same state dict."""

    def __init__(self) -> None:
        super().__init__()
        self._fraction_tables: tuple[rans.TableSet, Tensor, Tensor] | None = None

    def _store(self, offset: Tensor, cdf: Tensor, lengths: Tensor) -> None:
        super()._store(offset, cdf, lengths)
        self._fraction_tables = None

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._fraction_tables = None

    def split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        scales, means = parameters.chunk(2, 1)
        return scales, means

    def fraction_tables(self) -> tuple[rans.TableSet, Tensor, Tensor]:
        """The tables of N(f, sigma^2), f at the middles of equal parts of 0 .. 1/2; and for each scale, how many parts
        it has and the index of the first: int64 [scales]."""
        if self._fraction_tables is None:
            scales = self.scale_table.tolist()
            parts = [max(1, math.ceil(0.5 / (_STEP * scale))) for scale in scales]
            cdfs, offsets = [], []
            for scale, count in zip(scales, parts, strict=True):
                reach = math.ceil(6.2 * scale + 0.5)
                symbols = torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu")
                for part in range(count):
                    fraction = (part + 0.5) / (2 * count)
                    sigma = torch.tensor(scale, dtype=torch.float64, device="cpu")
                    pmf = gaussian_likelihood(symbols - fraction, sigma)
                    cdfs.append(quantised_cdf(pmf.numpy(), max(1 - float(pmf.sum()), LEAST_LIKELIHOOD)))
                    offsets.append(-reach)
            if len(cdfs) > MAX_TABLES:
                raise ValueError(f"these scales need {len(cdfs)} tables, the coder takes {MAX_TABLES}")
            (tables,) = table_sets(*stack_cdfs(cdfs), torch.tensor(offsets, dtype=torch.int32, device="cpu"))
            counts = torch.tensor(parts, dtype=torch.int64, device="cpu")
            self._fraction_tables = tables, counts, counts.cumsum(0) - counts
        return self._fraction_tables

    def encode(self, y: Tensor, parameters: Tensor) -> tuple[rans.Pass, Tensor, float]:
        scales, means = self.split(parameters)
        y_hat = torch.round(y)
        likelihood = gaussian_likelihood(y_hat.double() - means, scales.double().clamp(min=LEAST_SCALE))
        bits = -torch.log2(likelihood.clamp(min=LEAST_LIKELIHOOD)).sum()
        tables, indexes, centre, sign = self._placed(scales, means)
        symbols = ((y_hat - centre) * sign).to(torch.int32).contiguous()
        return rans.Pass(symbols, indexes, tables), y_hat, float(bits)

    def decode(self, decoder: rans.Decoder, parameters: Tensor) -> Tensor:
        tables, indexes, centre, sign = self._placed(*self.split(parameters))
        (symbols,) = decoder.decode([indexes], tables)
        return symbols * sign + centre

    def _placed(self, scales: Tensor, means: Tensor) -> tuple[rans.TableSet, Tensor, Tensor, Tensor]:
        """The tables, each element's index, round(mu), and -1 where the table is to be read mirrored."""
        tables, *by_level = self.fraction_tables()
        counts, first = (column.to(scales.device) for column in by_level)  # the model may have moved since
        level = self.indexes(scales).long()
        centre = torch.round(means)
        fraction = means - centre
        count = counts[level]
        part = torch.minimum((fraction.abs() * 2 * count).long(), count - 1)
        sign = torch.where(fraction < 0, -1.0, 1.0).to(fraction.dtype)
        return tables, (first[level] + part).to(torch.uint8), centre, sign
