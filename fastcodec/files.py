"""Files: .fic files as callers have them, the images of a folder, outputs that take their place whole or not at all.

Imports no PyTorch.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import io
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeAlias

from .errors import ImageError, within

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


def check_regular(path: str | os.PathLike) -> None:
    """ImageError for what is no regular file: a pipe might never end. OSError for what is not there."""
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        raise ImageError("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")


# ---- images of a folder

# Suffixes of the images in a folder; a file that is named may have any.
# fmt: off
IMAGE_SUFFIXES = frozenset({
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".tif", ".tiff", ".bmp", ".dib", ".gif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".jp2", ".j2k", ".qoi", ".dds", ".psd", ".heic", ".heif",
})
# fmt: on


def image_files(folder: Path, *, recursive: bool = False) -> list[Path]:
    """The images directly in a folder, or anywhere below it, by their names' suffixes: sorted, without hidden ones.

    Of what is no folder, itself.
    """
    if not folder.is_dir():
        return [folder]
    found = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))


# ---- outputs

_unfinished: set[Path] = set()


def discard_unfinished() -> None:
    """Remove the temporary files of every `replacing` that is under way: for a process that ends in the middle."""
    for path in tuple(_unfinished):
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | os.PathLike, *, overwrite: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` when the block ends, and leaves no trace if it raises.

    overwrite: if false, a file that is there already, or is by the end, stays: FileExistsError, unless it holds the
    very bytes that were written. OSError carries the name `path`, not the temporary one.
    """
    path = Path(path)
    # Short, whatever the name: one at the file system's limit leaves no room for more.
    temporary = path.with_name(f".{secrets.token_hex(6)}.part")
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a directory", str(path))
        stream = open(temporary, "x+b")  # noqa: SIM115 (closed below, before it is moved)
        _unfinished.add(temporary)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    try:
        with stream:
            yield stream
        if overwrite:
            os.replace(temporary, path)
        else:
            _move_to_new(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _unfinished.discard(temporary)


def _move_to_new(temporary: Path, path: Path) -> None:
    """Move a file to a name that must be free, or hold the same bytes: then it is removed, else FileExistsError."""
    try:
        os.link(temporary, path)  # of two processes that try it at once, one fails
    except OSError:  # it is there, or the file system has no links
        if not path.exists():
            os.replace(temporary, path)
            return
        if not filecmp.cmp(temporary, path, shallow=False):
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None
    temporary.unlink()
