"""What the files of this package share: operators, whether kernels are interpreted, what to compile ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

#: Whether kernels run in Triton's interpreter, on the CPU. Decided when the first kernel is decorated.
INTERPRETED: bool = triton.knobs.runtime.interpret

_LIBRARY = torch.library.Library("fastcodec", "FRAGMENT")


def operator(schema: str, run: Callable[..., Any], fake: Callable[..., Any] | None = None) -> None:
    """Defines a PyTorch operator in the namespace "fastcodec".

    run: on tensors of the CPU, or of a GPU, which then is the current one: Triton launches there. fake: what it
    returns for tensors without data; None for an operator that only writes into its arguments.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CPU")
    _LIBRARY.impl(name, _on_their_gpu(run), "CUDA")
    torch.library.register_fake(f"fastcodec::{name}", fake or (lambda *arguments, **options: None), lib=_LIBRARY)


def differentiate(name: str, backward: Callable[..., Any], save: Callable[..., None]) -> None:
    """Gives an operator a gradient: `torch.library.register_autograd`."""
    torch.library.register_autograd(f"fastcodec::{name}", backward, setup_context=save, lib=_LIBRARY)


def _on_their_gpu(run: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(*arguments: Any, **options: Any) -> Any:
        device = next(argument.device for argument in arguments if isinstance(argument, Tensor))
        with torch.cuda.device(device):
            return run(*arguments, **options)

    return guarded


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
