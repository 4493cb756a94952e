"""A .fic file as callers have it: its bytes, its path, or a file object. This is the one rule for all that read one.

Imports no PyTorch.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from .errors import within

FileLike: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO"


def contents(file: FileLike) -> memoryview:
    """The bytes of a file, one-dimensional and contiguous; not copied where it is bytes already.

    file: bytes, or any other object with a buffer (bytearray, memoryview, mmap, a NumPy array), of which one with
    strides is copied; a path, str or os.PathLike; or a binary file object, which is read from where it is to its end.

    Raises TypeError for anything else, OSError for a path that cannot be read.
    """
    if isinstance(file, str | os.PathLike):
        return memoryview(Path(file).read_bytes())
    given: Any = file  # callers without types give anything
    if isinstance(given, io.TextIOBase):
        raise TypeError("the file is open as text: open it in binary mode, 'rb'")
    try:
        view = memoryview(given)  # first: an mmap can be read as well, but once
    except TypeError:
        if not callable(getattr(given, "read", None)):
            raise TypeError(
                "a .fic file is given as its bytes (bytes, bytearray, memoryview ...), as its path (str or "
                f"os.PathLike) or as a binary file object, not as {type(given).__name__}"
            ) from None
        data = given.read()
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"a binary file object's read() gives bytes, not {type(data).__name__}") from None
        view = memoryview(data)
    return view.cast("B") if view.c_contiguous and view.nbytes else memoryview(view.tobytes())


def naming(file: FileLike) -> AbstractContextManager[None]:
    """A context: what is raised within it names the file, where it has a name."""
    name = _name(file)
    return within(name) if name else nullcontext()


def several(files: Iterable[FileLike]) -> list[FileLike]:
    """The files of a batch. Raises TypeError for a single one, whose bytes or letters are no files."""
    if isinstance(files, bytes | bytearray | memoryview | str | os.PathLike) or hasattr(files, "read"):
        raise TypeError(f"several files are needed, not one {type(files).__name__}: put a single file into a list")
    return list(files)


def _name(file: object) -> str:
    """The path of a file that was given by one or opened from one; else empty."""
    if isinstance(file, str | os.PathLike):
        return os.fsdecode(file)
    name = getattr(file, "name", None) if hasattr(file, "read") else None
    return name if isinstance(name, str) else ""
