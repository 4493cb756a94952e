"""Write the golden files anew: `python tests/golden/regenerate.py`, only together with a new model identity.

Each case is a .fic file, the pixels that it decodes to as a PNG, and in expected.json the SHA-256 of its latents. They
pin the format and the decoder: as long as the model is the same they must decode, so this refuses to replace them
(--force does, for a change of format before 1.0). Those of the release before move to earlier/: they must decode too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastcodec import info
from fastcodec.codec import Codec
from fastcodec.images import Picture, to_picture
from fastcodec.models.swift import release as released

FOLDER = Path(__file__).parent
EARLIER = "earlier"  # the folder of the files of the release before
LARGEST = 150_000  # bytes of a release's golden files together


def cases() -> dict[str, tuple[Picture, dict[str, Any]]]:
    """Name -> picture, and how it is encoded: small, and of every kind that the format knows."""
    from skimage import data

    def case(picture: Picture, quality: int, preset: str = "size", **options: Any) -> tuple[Picture, dict[str, Any]]:
        return picture, {"quality": quality, "preset": preset, **options}

    photo, other = data.astronaut()[20:, 130:], data.coffee()
    gray = photo[..., 1]
    ramp = np.linspace(0, 255, 90 * 70).reshape(70, 90).astype(np.uint8)
    bits = np.repeat(255 * np.random.default_rng(1).integers(2, size=(16, 80, 1), dtype=np.uint8), 3, 2)
    exif = Image.Exif()
    exif[0x010F] = "fastcodec"
    metadata = {"icc": b"not a real profile" * 10, "exif": exif.tobytes().removeprefix(b"Exif\0\0")}
    return {
        "one-pixel": case(to_picture(photo[:1, :1].copy()), 50),
        "column": case(to_picture(photo[:130, 90:91].copy()), 60),
        "gray": case(to_picture(gray[:31, :17].copy()), 80),
        "gray-alpha": case(Picture(gray[50:83, 40:80].copy(), ramp[:33, :40].copy()), 35),
        "alpha": case(Picture(other[100:170, 150:240].copy(), ramp), 60),
        "metadata": case(Picture(other[200:220, 300:333].copy(), **metadata), 25),
        "xmp": case(Picture(other[200:220, 300:333].copy(), **metadata, xmp=b"<x:xmpmeta/>"), 25),
        "lowest": case(to_picture(photo[:96, :96].copy()), 1),
        "highest": case(to_picture(photo[60:108, 50:98].copy()), 100, "latency"),
        "photograph": case(to_picture(photo[:120, :160].copy()), 70, "latency"),
        "two-tiles": case(to_picture(np.tile(other[180:196], (1, 3, 1))[:, :1290].copy()), 20),
        "lossless": case(to_picture(bits), 100, lossless=True),
        "mixed": case(to_picture(np.concatenate([np.tile(other[180:196], (1, 2, 1))[:, :1024], bits], 1)), 60),
    }


def latents_digest(codec: Codec, data: bytes) -> str:
    """SHA-256 of the decoded latents: int32 in 1/16, little-endian, [rows, columns, channels]."""
    return hashlib.sha256(codec.latents(data).numpy().astype("<i4").tobytes()).hexdigest()


def regenerate(folder: Path = FOLDER, force: bool = False) -> str:
    """Write all cases into `folder`; returns the model's identity. SystemExit where the model is still the same."""
    codec = Codec.load("swift")
    identity = codec.model.identity.hex()
    index = folder / "expected.json"
    if index.exists() and json.loads(index.read_text())["model"] == identity and not force:
        raise SystemExit(f"the golden files are of the default model {identity} already: they must decode as they are")
    earlier = folder / EARLIER
    if index.exists() and json.loads(index.read_text())["model"] in released.available("swift")[1:]:
        shutil.rmtree(earlier, ignore_errors=True)
        earlier.mkdir()
        for old in (*folder.glob("*.fic"), *folder.glob("*.png"), index):
            old.rename(earlier / old.name)
    for old in (*folder.glob("*.fic"), *folder.glob("*.png")):
        old.unlink()
    expected = {}
    for name, (picture, options) in cases().items():
        data = codec.encode(picture, **options)
        (folder / f"{name}.fic").write_bytes(data)
        Image.fromarray(codec.decode(data, out="numpy")).save(folder / f"{name}.png", optimize=True)
        expected[name] = {
            "quality": options["quality"],
            "mode": picture.mode,
            "lossless_tiles": info(data).lossless_tiles,
            "latents": None if options.get("lossless") else latents_digest(codec, data),
        }
    index.write_text(json.dumps({"model": identity, "files": expected}, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if size > LARGEST:
        raise SystemExit(f"the golden files take {size} bytes, more than {LARGEST}: choose smaller cases")
    return identity


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--force", action="store_true", help="though the model is the same")
    print("written for model", regenerate(force=parser.parse_args().force))
    sys.exit(0)
