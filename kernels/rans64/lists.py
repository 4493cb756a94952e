"""Python lists of integers to tensors int32: `to_tensor`.

The conversion is most of the time of a coder whose interface is lists. lists.cpp takes 7 ns an element, `array` and
NumPy 11 to 17. (The way back, `Tensor.numpy().tolist()`, is as fast as it gets: it allocates the integers.)
"""

from __future__ import annotations

import ctypes
import operator
from collections.abc import Sequence
from ctypes import c_void_p
from functools import cache

import numpy as np
import torch
from torch import Tensor

from . import _library

_FUNCTIONS = ("PyList_GetItem", "PyLong_AsLongAndOverflow")


@cache
def _compiled() -> ctypes.PyDLL | None:
    """lists.cpp, if this interpreter is a CPython whose objects begin as it expects: a count, then the type."""
    api = getattr(ctypes, "pythonapi", None)
    if api is None or object.__basicsize__ != 16 or not all(hasattr(api, name) for name in _FUNCTIONS):
        return None
    if any(c_void_p.from_address(id(item) + 8).value != id(type(item)) for item in (1, 1 << 40, [], "")):
        return None
    lib = _library.list_library()
    addresses = [ctypes.cast(getattr(api, name), c_void_p).value for name in _FUNCTIONS]
    lib.fastcodec_rans64_lists_use((c_void_p * 3)(*addresses, id(int)))
    return lib


def to_tensor(values: Sequence[int]) -> Tensor:
    """A sequence of integers as a tensor int32 [n] on the CPU.

    Raises:
        TypeError: not a sequence, or an element is no integer.
        ValueError: an element is outside int32.
    """
    lib = _compiled()
    if lib is not None and type(values) is list:
        out = torch.empty(len(values), dtype=torch.int32, device="cpu")
        if lib.fastcodec_rans64_lists_read(values, len(values), out.data_ptr()) == len(values):
            return out
    if isinstance(values, str | bytes) or not hasattr(values, "__len__"):
        raise TypeError(f"a list of integers is needed, not {type(values).__name__}")
    items = [operator.index(value) for value in values]
    if items and not (min(items) >= -(1 << 31) and max(items) < 1 << 31):
        raise ValueError("an integer does not fit 32 bits")
    return torch.from_numpy(np.array(items, dtype=np.int32))
