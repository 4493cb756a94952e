"""What the files of this package share: whether kernels are interpreted, and how one is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

#: Whether kernels run in Triton's interpreter, on the CPU. Decided when the first kernel is decorated.
INTERPRETED: bool = triton.knobs.runtime.interpret

#: Every operator of the package is defined in PyTorch's namespace "fastcodec".
OPERATORS = torch.library.Library("fastcodec", "FRAGMENT")


@dataclass(frozen=True)
class Build:
    """One compilation of a kernel, as a launch would ask for it.

    signature: types by argument ("*i8", "*fp16", "i32", ...), constants left out; constants: the tl.constexpr ones.
    Pointers are taken to be aligned to 16 bytes, as PyTorch's are; `unaligned` names those that may not be.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    stages: int = 2
    unaligned: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)


def on_gpu(tensor: Tensor) -> bool:
    """Whether an operation on this tensor runs its kernel: on a GPU, or interpreted."""
    return tensor.device.type == "cuda" or INTERPRETED
