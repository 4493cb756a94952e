"""What coding costs a trained system of the zoo: real bytes beside the model's code length, and integers beside floats.

    python -m bench.studies.zoo_rates NAME WEIGHTS --images KODAK --calibration PHOTOGRAPHS --out JSON

For each image: the file's bytes against the estimate; the latents alone, on one lane, against their ideal code length
(of a mixture: docs/mixture.md); and, where the system can be converted, the code length and the bytes with an entropy
side of integers that was calibrated on other photographs (docs/portable.md).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastcodec import Codec, container, machine
from fastcodec.engines.whole_image import network_input
from fastcodec.files import image_files
from fastcodec.images import Picture, read_picture
from fastcodec.kernels import rans
from fastcodec.models import zoo
from fastcodec.models.zoo import integerize as integer
from fastcodec.models.zoo.balle2018 import Hyperprior
from fastcodec.models.zoo.base import CompressionModel, channels_last, coding

CALIBRATION_IMAGES = 8


def latents_cost(model: CompressionModel, picture: Picture) -> tuple[float, float, int]:
    """The ideal code length of a picture's latents y in bits, what they take on one lane, and how many they are.

    One lane: files have more where that makes decoding faster, at 4 bytes each.
    """
    with coding():
        y = model.g_a(channels_last(network_input(model, picture.pixels)))
        coded = model.encode_latents(y)
        hyper, z_bits = 0, 0.0
        if isinstance(model, Hyperprior):
            passes, _, z_bits = model.entropy_bottleneck.encode(model.hyper_analysis(y))
            hyper = len(passes)
    (payload,) = rans.encode([coded.passes[hyper:]], lanes=1, streams=1)
    return coded.bits - z_bits, 8.0 * len(payload), y.numel()


def measure(model: CompressionModel, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Sums over the pictures: bits of files, payloads and latents alone, ideal and real. Every file is verified."""
    names = ("pixels", "file_bits", "payload_bits", "estimated_bits", "latents", "latent_bits", "latent_ideal")
    out: dict[str, float] = dict.fromkeys(names, 0)
    codec, worst = Codec(model), 0.0
    for picture in pictures:
        encoded = codec.encode(picture)
        codec.verify(encoded)
        out["pixels"] += picture.width * picture.height
        out["file_bits"] += 8 * len(encoded)
        out["payload_bits"] += 8 * len(container.read(encoded).tile(0).payload)
        out["estimated_bits"] += encoded.estimated_bits
        # The goal of every system: real bytes <= 1.01 estimate + 100 bytes.
        worst = max(worst, len(encoded) / (1.01 * encoded.estimated_bits / 8 + 100))
        ideal, real, count = latents_cost(model, picture)
        out["latent_ideal"] += ideal
        out["latent_bits"] += real
        out["latents"] += count
    return out | {
        "bits_per_pixel": out["file_bits"] / out["pixels"],
        "file_overhead": out["file_bits"] / out["estimated_bits"] - 1,
        "latent_overhead": out["latent_bits"] / out["latent_ideal"] - 1,
        "share_of_the_allowed_bytes_at_worst": worst,
    }


def study(model: CompressionModel, pictures: Sequence[Picture], calibration: Sequence[Picture]) -> dict[str, Any]:
    """All figures of one system; "integers" is None where it has no integer twin."""
    record: dict[str, Any] = {"images": len(pictures), "floats": measure(model, pictures), "integers": None}
    try:
        twin = integer.integerized(model, [network_input(model, picture.pixels) for picture in calibration])
        assert twin.report is not None
    except ValueError as error:
        return record | {"why_no_integers": str(error)}
    whole = measure(twin, pictures)
    return record | {
        "integers": whole,
        "calibration_images": twin.report.images,
        "cost_on_calibration": twin.report.cost,
        "cost_in_code_length": whole["estimated_bits"] / record["floats"]["estimated_bits"] - 1,
        "cost_in_bytes": whole["payload_bits"] / record["floats"]["payload_bits"] - 1,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(prog="python -m bench.studies.zoo_rates", description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=zoo.SYSTEMS, metavar="NAME", help="a system of the zoo")
    parser.add_argument("weights", type=Path, help="its state dict, as the trainer writes it")
    parser.add_argument("--images", type=Path, required=True, help="folder of images to report on")
    parser.add_argument("--calibration", type=Path, required=True, help="folder of other photographs, of which 8 serve")
    parser.add_argument("--out", type=Path, help="JSON; a system's record joins those that it has")
    args = parser.parse_args(arguments)
    model = zoo.load(args.name, torch.load(args.weights, map_location="cpu", weights_only=True))
    pictures = [read_picture(path) for path in image_files(args.images)]
    calibration = [read_picture(path) for path in image_files(args.calibration)[:CALIBRATION_IMAGES]]
    record = study(model, pictures, calibration)
    floats, whole = record["floats"], record["integers"]
    print(f"{args.name}: {record['images']} images, {floats['bits_per_pixel']:.3f} bits a pixel")
    print(f"  files        {floats['file_overhead']:+.3%} over the estimate")
    print(f"  latents      {floats['latent_overhead']:+.3%} over their ideal code length")
    if whole is not None:
        print(f"  in integers  {record['cost_in_code_length']:+.4%} code length, {record['cost_in_bytes']:+.4%} bytes")
    if args.out is not None:
        known = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {"systems": {}}
        known["machine"] = machine.describe()
        known["systems"][args.name] = record
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
