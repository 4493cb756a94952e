"""Codecs of CompressAI's networks, and of their twins in integers.

codec = fastcodec.from_compressai(compressai.zoo.mbt2018_mean(3, pretrained=True))
codec.save("mbt2018-mean-3.pth")                  # fastcodec compress --model mbt2018-mean-3.pth ...
codec = fastcodec.integerize(codec, photographs)  # its files decode on every device
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor, nn

from .codec import Codec
from .container import DEFAULT_LIMITS, Limits
from .engines import DeviceLike
from .engines.whole_image import network_input
from .errors import UnsupportedError
from .images import ImageLike, read_picture, to_picture
from .models.zoo import checkpoints
from .models.zoo import integerize as integer
from .models.zoo.base import CompressionModel


def from_compressai(
    model: nn.Module | Mapping[str, Tensor],
    name: str | None = None,
    *,
    device: DeviceLike = None,
    quality: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Codec:
    """A codec of one of CompressAI's image models; its weights are copied.

    model: an instance of one of its classes, or a state dict, also such as its trainer saves, with "state_dict" in it.
    name: the system, in our words or CompressAI's, where a state dict does not tell (a random-mask supernet's). device:
    as `Codec.load` takes it, but None for where the weights are. quality: as for `Codec`.

    Raises UnknownModelError for another class, or a state dict of no system or of another one than `name`,
    UnsupportedError for a variable-rate model with switches set that no published one has and for more scales than the
    coder has tables, UnavailableError for a device that is not there, ValueError or TypeError for what names none.
    """
    system = (
        checkpoints.from_network(model, name) if isinstance(model, nn.Module) else checkpoints.system_of(model, name)
    )
    return Codec(system, limits, device, quality)


def integerize(
    model: Codec | CompressionModel | nn.Module, calibration_images: Iterable[ImageLike | str | Path]
) -> Codec:
    """A codec of the same model with its entropy side in integers: its files decode on every device (docs/portable.md).

    model: a codec, a system of the zoo, or an instance of one of CompressAI's classes; it stays as it is.
    calibration_images: photographs like those to be coded, a handful, as `Codec.encode` takes them or paths. They set
    the ranges of the 16-bit activations. The result's `model.report` has what the conversion costs on them.

    Raises UnsupportedError for a system without an integer twin (variable rates, mixtures, y^ = round(y)),
    ExactnessError for weights that have none, ValueError without images, TypeError for a single one, ImageError for
    what is no image, and what `from_compressai` raises.
    """
    single = isinstance(calibration_images, np.ndarray | Tensor) and calibration_images.ndim < 4
    if single or isinstance(calibration_images, str | Path | Image.Image):  # rows and letters are no images
        raise TypeError("calibration_images are several images or paths: put a single one into a list")
    if isinstance(model, CompressionModel):
        model = Codec(copy.deepcopy(model))
    codec = model if isinstance(model, Codec) else from_compressai(model)
    if not isinstance(codec.model, CompressionModel):
        raise UnsupportedError("a released model is in integers already")
    pictures = (
        read_picture(image) if isinstance(image, str | Path) else to_picture(image) for image in calibration_images
    )
    twin = integer.integerized(codec.model, [network_input(codec.model, picture.pixels) for picture in pictures])
    return Codec(twin, codec.limits, quality=None if codec.model.variable_rate else codec.quality)
