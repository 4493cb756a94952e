"""CompressAI, imported where not all that it asks for is installed.

Its image codecs need neither torchvision's compiled operators nor torch_geometric, but its package imports both. The
operators are declared (torchvision's wheel for CUDA lacks them beside a PyTorch for the CPU), and packages that are not
installed are stood in for by empty ones.
"""

import importlib
import importlib.abc
import importlib.util
import sys
import types
from functools import cache
from importlib.machinery import ModuleSpec
from typing import Any

import torch

from .common import CannotRunError

_OPTIONAL = ("torch_geometric", "torchvision", "pandas", "requests", "matplotlib", "PIL", "pytorch_msssim")


class _Anything:
    """A base class, a decorator or a value: whatever the import of a missing name is used as."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, argument: Any = None, *args: Any, **kwargs: Any) -> Any:
        return argument


class _Empty(types.ModuleType):
    __path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Anything


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if fullname.split(".")[0] in self._names:
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


@cache
def load() -> types.ModuleType:
    """The package compressai, its models, zoo and entropy models imported.

    Raises:
        CannotRunError: it is not installed.
    """
    if importlib.util.find_spec("compressai") is None:
        raise CannotRunError("CompressAI is not installed: pip install --no-deps compressai")
    if importlib.util.find_spec("torchvision") is not None:
        for name in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, name):
                torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float threshold) -> Tensor")
    stand_ins = _StandIns(tuple(name for name in _OPTIONAL if importlib.util.find_spec(name) is None))
    before = set(sys.modules)
    sys.meta_path.append(stand_ins)
    try:
        for name in ("compressai", "compressai.entropy_models", "compressai.models", "compressai.zoo"):
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(stand_ins)
        # Nobody else shall find an empty package.
        for name in set(sys.modules) - before:
            if isinstance(sys.modules[name], _Empty):
                del sys.modules[name]
    return sys.modules["compressai"]
