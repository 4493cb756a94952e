"""Every error that fastcodec raises on purpose. All derive from `FastcodecError` and say what was wrong and where."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .kernels.errors import CorruptStreamError, FastcodecError, SymbolRangeError, UnavailableError

__all__ = [
    "CorruptStreamError",
    "ExactnessError",
    "FastcodecError",
    "ImageError",
    "LimitError",
    "ModelMismatchError",
    "NotAFicFileError",
    "NotPortableWarning",
    "SymbolRangeError",
    "TargetError",
    "UnavailableError",
    "UnknownModelError",
    "UnsupportedError",
    "UnsupportedVersionError",
    "within",
]


class NotAFicFileError(CorruptStreamError):
    """The data does not begin as a .fic file does."""


class UnsupportedVersionError(FastcodecError, ValueError):
    """The file's format version is newer than this library reads."""


class ModelMismatchError(FastcodecError, ValueError):
    """The file was written with a model whose weights this installation does not have."""


class UnknownModelError(FastcodecError, ValueError):
    """A network, or a model file, that is none of the systems that this package has."""


class UnsupportedError(FastcodecError, ValueError):
    """An operation that the model or the file cannot do, whatever its data."""


class LimitError(FastcodecError, ValueError):
    """A size beyond the caller's limits; raise the limit if the data is trusted."""


class ImageError(FastcodecError, ValueError):
    """An input that cannot be read as an image."""


class ExactnessError(FastcodecError, ValueError):
    """A model or a platform on which the integer entropy side would not be exact (docs/integer.md)."""


class TargetError(FastcodecError, ValueError):
    """A size target that no quality of the model reaches."""


class NotPortableWarning(UserWarning):
    """A floating-point file was written on another kind of machine, and may not decode on this one."""


@contextmanager
def within(what: str) -> Iterator[None]:
    """A context: what is raised within it has `what` in front of its message, "item 3: " say. Type, attributes and
    traceback stay. An OSError with a file name says it already, and is left as it is where `what` is that name."""
    try:
        yield
    except Exception as error:
        name_in(error, what)
        raise


def name_in(error: Exception, what: str) -> None:
    """Put "what: " in front of an error's message."""
    if isinstance(error, OSError) and error.strerror is not None:  # whose text is made of its parts
        if what != error.filename:
            error.strerror = f"{what}: {error.strerror}"
    elif len(error.args) <= 1:
        error.args = (f"{what}: {error}",)
    else:
        error.add_note(what)
