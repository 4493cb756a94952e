"""Reading .fic files for the command line."""

from __future__ import annotations

import stat
from pathlib import Path

from ..container import MAGIC
from ..errors import ImageError, NotAFicFileError


def read_fic(path: Path) -> bytes:
    """The bytes of a .fic file. What does not begin as one is refused before the rest of it is read."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("is a directory")
    if not stat.S_ISREG(mode):
        raise ImageError("is not a regular file")
    with open(path, "rb") as stream:
        head = stream.read(len(MAGIC))
        if head != MAGIC:
            raise NotAFicFileError("not a .fic file" if head else "the file is empty")
        return head + stream.read()
