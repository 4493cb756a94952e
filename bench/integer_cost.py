"""What the integer entropy side costs against a float one: `python -m bench.integer_cost RUN/last.pt IMAGES`.

Runs a trained checkpoint's averaged weights twice over the images that its training held out, with the entropy side in
float (clamped, unrounded) and in the integer arithmetic that it is released in, same noise, and compares the curves.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastcodec.crops import CropSource
from fastcodec.metrics import bd_rate
from fastcodec.models.swift.network import Swift, SwiftConfig

from .common import argument_parser

POINTS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
CROP = 512


@torch.no_grad()
def curve(model: Swift, images: torch.Tensor, quantise: bool) -> list[tuple[float, float]]:
    """Mean bits a pixel and mean PSNR at each point of the quality range."""
    model.set_quantise(quantise)
    out = []
    for point in POINTS:
        torch.manual_seed(0)
        rates, psnrs = [], []
        for x in images.split(4):
            result = model(x, torch.full((len(x),), point))
            mse = (result["x_hat"].clamp(0, 1) - x).square().flatten(1).mean(1)
            rates += ((result["y_bits"] + result["z_bits"]) / CROP**2).tolist()
            psnrs += (-10 * torch.log10(mse)).tolist()
        out.append((float(np.mean(rates)), float(np.mean(psnrs))))
    return out


def main() -> None:
    """The command line."""
    parser = argument_parser("bench.integer_cost", __doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("images", type=Path)
    arguments = parser.parse_args()
    state = torch.load(arguments.checkpoint, map_location="cpu", weights_only=True)
    model = Swift(SwiftConfig(**state["config"]))
    model.load_state_dict(state["average"])
    images = CropSource(arguments.images, CROP, 0).validation_batch(CROP).float() / 255
    real, whole = curve(model, images, False), curve(model, images, True)
    cost = bd_rate(*zip(*real, strict=True), *zip(*whole, strict=True))
    for point, (a, p), (b, q) in zip(POINTS, real, whole, strict=True):
        print(f"t {point:.1f}: float {a:.4f} bpp {p:.3f} dB, integer {b:.4f} bpp {q:.3f} dB ({b / a - 1:+.2%} of rate)")
    print(f"BD-rate of the integer side: {cost}")


if __name__ == "__main__":
    main()
