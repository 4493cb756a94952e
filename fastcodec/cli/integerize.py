"""`fastcodec integerize`: a model of CompressAI's or of the zoo to one whose files decode on every device."""

from __future__ import annotations

import argparse

from ..errors import ImageError, ModelMismatchError
from .report import say

MOST_IMAGES = 64


def main(arguments: argparse.Namespace) -> int:
    """Run `fastcodec integerize`."""
    from ..codec import Codec
    from ..convert import integerize
    from ..evaluate import find_images

    if arguments.out.exists() and arguments.model.exists() and arguments.out.samefile(arguments.model):
        raise ModelMismatchError(f"{arguments.out}: this is the model to convert, and would be lost")
    images = find_images(arguments.images)
    if not images:
        raise ImageError(f"{arguments.images}: no images to calibrate on")
    codec = Codec.load(arguments.model, arguments.device, system=arguments.system)
    converted = integerize(codec, images[:: -(-len(images) // MOST_IMAGES)])
    converted.save(arguments.out)
    report = converted.model.report
    cost = f"{report.cost:+.3%} bits on {report.images} images"
    say(f"{arguments.out}: model {converted.identity.hex()}, in integers; {cost}")
    return 0
