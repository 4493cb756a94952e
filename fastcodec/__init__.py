"""fastcodec: a learned image codec engine built on the checkerboard context model.

    codec = fastcodec.Codec.load("swift")
    blob = codec.encode(image, quality=60)   # PIL image, HWC uint8 array or CHW uint8 tensor -> bytes
    image = codec.decode(blob)
    fastcodec.info(blob)                     # no network, no pixels

    codec = fastcodec.from_compressai(model)        # the same for the models of CompressAI's zoo
    codec = fastcodec.integerize(codec, photographs)  # and their files decode on every device

All of these are imported on first use, so that `info` and the command line's help need no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .container import FileInfo, Limits, info
from .errors import FastcodecError

if TYPE_CHECKING:
    from .codec import Codec, Encoded
    from .models.zoo.checkpoints import from_compressai, integerize

__version__ = "0.1.0"
__all__ = [
    "Codec",
    "Encoded",
    "FastcodecError",
    "FileInfo",
    "Limits",
    "__version__",
    "from_compressai",
    "info",
    "integerize",
]


def __getattr__(name: str):
    if name in ("Codec", "Encoded"):
        from . import codec

        return getattr(codec, name)
    if name in ("from_compressai", "integerize"):
        from .models.zoo import checkpoints as convert

        return getattr(convert, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
