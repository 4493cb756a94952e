"""fastcodec's entropy coder as a library: interleaved rANS for tensors of integers, one distribution per symbol.

>>> import numpy as np, torch
>>> from fastcodec.rans import Decoder, Pass, TableSet, encode
>>> coin = np.array([0.25, 0.5, 0.25])                      # the probabilities of -1, 0 and 1
>>> tables = TableSet.from_pmfs([(-1, coin, 1e-4), (0, np.array([0.9, 0.1]), 1e-4)])
>>> symbols = torch.tensor([[-1, 0, 1, 300], [0, 1, 0, 0]], dtype=torch.int16)
>>> indexes = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]], dtype=torch.uint8)
>>> [payload] = encode([[Pass(symbols, indexes, tables)]])
>>> decoder = Decoder([payload])
>>> [decoded] = decoder.decode([indexes], tables)
>>> decoder.finish()                                        # raises CorruptStreamError unless all was used up
>>> torch.equal(decoded, symbols)
True

Symbols of Gaussian mixtures need no tables: their parameters go with them, as integers that both ends must have alike.

>>> from fastcodec.rans import MixturePass, quantise_mixtures
>>> weights = torch.tensor([0.75, 0.25]).view(2, 1, 1).expand(2, 2, 4)   # of two components, [K, positions, channels]
>>> means = torch.tensor([0.0, 10.0]).view(2, 1, 1).expand(2, 2, 4)
>>> mixture = quantise_mixtures(weights, means, torch.ones(2, 2, 4))
>>> [payload] = encode([[MixturePass(symbols, *mixture)]])
>>> decoder = Decoder([payload])
>>> [decoded] = decoder.decode_mixtures([mixture])
>>> decoder.finish()
>>> torch.equal(decoded, symbols)
True

Passes of both kinds may follow each other in a tile. Tensors on a GPU are coded there, to the same bytes: pass CUDA
tensors to `encode`, and `device="cuda"` to `Decoder`. docs/rans.md has an example for each use.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .entropy.gaussian import SCALES as GAUSSIAN_SCALES
from .entropy.gaussian import gaussian_tables
from .kernels.errors import CorruptStreamError, SymbolRangeError, UnavailableError
from .kernels.rans import (
    Decoder,
    Latents,
    Mixture,
    MixturePass,
    Pass,
    TableSet,
    available_isas,
    cost_bits,
    cuda_status,
    encode,
    quantise_mixtures,
)
from .kernels.rans.tables import MAX_TABLES

__all__ = [
    "GAUSSIAN_SCALES",
    "CorruptStreamError",
    "Decoder",
    "Latents",
    "Mixture",
    "MixturePass",
    "Pass",
    "SymbolRangeError",
    "TableSet",
    "UnavailableError",
    "available_isas",
    "cost_bits",
    "cuda_status",
    "encode",
    "gaussian_tables",
    "quantise_mixtures",
    "scale_indexes",
]


def scale_indexes(sigmas: Tensor, scales: Sequence[float] | np.ndarray | None = None) -> Tensor:
    """The indexes of the tables nearest in log-scale to standard deviations: uint8, contiguous, of the sigmas' shape.

    They are compared in float32 with sqrt(scales[i] * scales[i + 1]), so equal sigmas have equal indexes on every
    device. 0 and below count as the least scale, NaN as the greatest.

    Index 0 of `gaussian_tables()`, which sigmas up to 0.1157 have, is not coded: symbols must be 0 there. Clamp the
    indexes to 1 and more, and every symbol is coded.

    Args:
        sigmas: float [...], in quantisation steps.
        scales: the scale of each table, 1 to 256 of them, above 0 and rising; None: GAUSSIAN_SCALES, those of
            `gaussian_tables()`.

    Raises:
        ValueError: the scales are not so.
    """
    steps = np.asarray(GAUSSIAN_SCALES if scales is None else scales, dtype=np.float64)
    if steps.ndim != 1 or not 1 <= steps.size <= MAX_TABLES or not steps[0] > 0 or not (np.diff(steps) > 0).all():
        raise ValueError(f"scales must be 1 to {MAX_TABLES} numbers above 0, each greater than the one before")
    edges = torch.from_numpy(np.sqrt(steps[:-1] * steps[1:])).float().to(sigmas.device)
    return torch.bucketize(sigmas.float().contiguous(), edges).to(torch.uint8)
