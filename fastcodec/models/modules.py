"""Modules with the types that PyTorch's own signatures leave out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

import torch
from torch import nn

Item = TypeVar("Item", bound=nn.Module)

if TYPE_CHECKING:

    class ModuleList(nn.ModuleList, Generic[Item]):
        """`nn.ModuleList` of modules of one class."""

        def __init__(self, modules: Iterable[Item]) -> None: ...
        def __iter__(self) -> Iterator[Item]: ...
        @overload
        def __getitem__(self, idx: slice) -> ModuleList[Item]: ...
        @overload
        def __getitem__(self, idx: int) -> Item: ...
        def __getitem__(self, idx: int | slice) -> Item | ModuleList[Item]: ...
        def append(self, module: nn.Module) -> ModuleList[Item]: ...

else:
    ModuleList = nn.ModuleList


def in_layout(module: Item, layout: torch.memory_format) -> Item:
    """The module, its weights in a memory format."""
    return module.to(memory_format=layout)  # type: ignore[call-overload]  # no overload of PyTorch's has this argument
