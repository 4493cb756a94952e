"""The coders' shared libraries, which have plain C interfaces, through ctypes."""

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Signatures = Mapping[str, tuple[Any, list[Any]]]  # of each function: the type of its result, and those of its arguments


def load_library(path: Path, prefix: str, signatures: Signatures) -> ctypes.CDLL:
    """A library with its functions declared, whose names are `prefix` and a key of `signatures`.

    Raises:
        ImportError: it is not built.
    """
    if not path.exists():
        raise ImportError(f"the coder's library {path.name} is not built: run `python kernels/build.py`")
    library = ctypes.CDLL(str(path))
    for name, (result, arguments) in signatures.items():
        function = getattr(library, prefix + name)
        function.restype, function.argtypes = result, arguments
    return library
