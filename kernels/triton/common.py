"""What the files of this package share: operators, whether kernels are interpreted, what to compile ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

#: Triton's names of pointers to what tensors hold.
POINTERS = {
    torch.int8: "*i8",
    torch.uint8: "*u8",
    torch.int16: "*i16",
    torch.int32: "*i32",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
}
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
    options: what else the launch passes, such as num_stages, for which Triton has a default. Pointers are taken to be
    aligned to 16 bytes, as PyTorch's are; `unaligned` names those that may not be.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    warps: int
    unaligned: frozenset[str] = frozenset()
    options: Mapping[str, Any] = field(default_factory=dict)


def on_gpu(tensor: Tensor) -> bool:
    """Whether an operation on this tensor runs its kernel: on a GPU, or interpreted."""
    return tensor.device.type == "cuda" or INTERPRETED


def check(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int | None) -> None:
    """ValueError unless the tensor is contiguous and of this type and shape; None stands for any size."""
    fits = tensor.dim() == len(shape) and all(
        want in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    )
    if tensor.dtype != dtype or not fits or not tensor.is_contiguous():
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        found = f"{tensor.dtype} {list(tensor.shape)}" + ("" if tensor.is_contiguous() else ", not contiguous")
        raise ValueError(f"{name} must be a contiguous {dtype} [{wanted}], not {found}")


def check_channels(**channels: int) -> None:
    """ValueError unless each is a power of two that a tensor core's int8 product takes as the length of its sum."""
    for name, count in channels.items():
        if count < 32 or count & (count - 1):
            raise ValueError(f"{count} {name}: the kernels take powers of two from 32")
