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

Tensors on a GPU are coded there, to the same bytes: pass CUDA tensors to `encode`, and `device="cuda"` to `Decoder`.
"""

from .kernels.errors import CorruptStreamError, SymbolRangeError, UnavailableError
from .kernels.rans import Decoder, Pass, TableSet, available_isas, cost_bits, cuda_status, encode

__all__ = [
    "CorruptStreamError",
    "Decoder",
    "Pass",
    "SymbolRangeError",
    "TableSet",
    "UnavailableError",
    "available_isas",
    "cost_bits",
    "cuda_status",
    "encode",
]
