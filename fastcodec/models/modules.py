"""`nn.ModuleList` of modules of one class, which PyTorch's own type does not tell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar, overload

from torch import nn

Item = TypeVar("Item", bound=nn.Module)

if TYPE_CHECKING:

    class ModuleList(nn.ModuleList, Generic[Item]):
        def __init__(self, modules: Iterable[Item]) -> None: ...
        def __iter__(self) -> Iterator[Item]: ...
        @overload
        def __getitem__(self, idx: slice) -> ModuleList[Item]: ...
        @overload
        def __getitem__(self, idx: int) -> Item: ...
        def append(self, module: nn.Module) -> ModuleList[Item]: ...

else:
    ModuleList = nn.ModuleList
