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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .container import FileInfo, Limits, info
from .errors import FastcodecError

if TYPE_CHECKING:
    from .codec import Codec
    from .convert import from_compressai, integerize
    from .images import Picture
    from .results import DecodedTensor, Encoded

__version__ = "0.1.0"
__all__ = [
    "Codec",
    "DecodedTensor",
    "Encoded",
    "FastcodecError",
    "FileInfo",
    "Limits",
    "Picture",
    "__version__",
    "from_compressai",
    "info",
    "integerize",
]


_MODULES = {
    "Codec": "codec",
    "DecodedTensor": "results",
    "Encoded": "results",
    "Picture": "images",
    "from_compressai": "convert",
    "integerize": "convert",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
