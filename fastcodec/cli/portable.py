"""`fastcodec integerize`: a model of CompressAI's or of the zoo to one whose files decode on every device."""

from __future__ import annotations

import argparse

from ..errors import ImageError, ModelMismatchError
from ..files import image_files
from .report import say

MOST_IMAGES = 64


def main(arguments: argparse.Namespace) -> int:
    """Run `fastcodec integerize`."""
    from ..codec import Codec
    from ..convert import integerize
    from ..models.zoo.base import CompressionModel

    if arguments.out.exists() and arguments.model.exists() and arguments.out.samefile(arguments.model):
        raise ModelMismatchError(f"{arguments.out}: this is the model to convert, and would be lost")
    images = image_files(arguments.images)
    if not images:
        raise ImageError(f"{arguments.images}: no images to calibrate on")
    codec = Codec.load(arguments.model, arguments.device, system=arguments.system)
    converted = integerize(codec, images[:: -(-len(images) // MOST_IMAGES)])
    converted.save(arguments.out)
    if isinstance(converted.model, CompressionModel) and (report := converted.model.report) is not None:
        cost = f"{report.cost:+.3%} bits on {report.images} images"
        say(f"{arguments.out}: model {converted.identity.hex()}, in integers; {cost}")
    return 0
