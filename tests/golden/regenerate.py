"""Write the golden files anew: `python tests/golden/regenerate.py`, only together with a new model identity.

Each case is a .fic file, the pixels that it decodes to as a PNG, and in expected.json the SHA-256 of its latents. They
pin the format and the decoder: as long as the model is the same they must decode, so this refuses to replace them
(--force does, for a change of format before 1.0).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from fastcodec.codec import Codec
from fastcodec.images import Picture, to_picture

FOLDER = Path(__file__).parent
LARGEST = 150_000  # bytes of all golden files together


def cases() -> dict[str, tuple[Picture, int, str]]:
    """Name -> picture, quality, preset: small, and of every kind that the format knows."""
    from skimage import data

    photo, other = data.astronaut()[20:, 130:], data.coffee()
    gray = photo[..., 1]
    ramp = np.linspace(0, 255, 90 * 70).reshape(70, 90).astype(np.uint8)
    exif = Image.Exif()
    exif[0x010F] = "fastcodec"
    metadata = {"icc": b"not a real profile" * 10, "exif": exif.tobytes().removeprefix(b"Exif\0\0")}
    return {
        "one-pixel": (to_picture(photo[:1, :1].copy()), 50, "size"),
        "column": (to_picture(photo[:130, 90:91].copy()), 60, "size"),
        "gray": (to_picture(gray[:31, :17].copy()), 80, "size"),
        "gray-alpha": (Picture(gray[50:83, 40:80].copy(), ramp[:33, :40].copy()), 35, "size"),
        "alpha": (Picture(other[100:170, 150:240].copy(), ramp), 60, "size"),
        "metadata": (Picture(other[200:220, 300:333].copy(), **metadata), 25, "size"),
        "lowest": (to_picture(photo[:96, :96].copy()), 1, "size"),
        "highest": (to_picture(photo[60:108, 50:98].copy()), 100, "latency"),
        "photograph": (to_picture(photo[:120, :160].copy()), 70, "latency"),
        "two-tiles": (to_picture(np.tile(other[180:196], (1, 3, 1))[:, :1290].copy()), 20, "size"),
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
    for old in (*folder.glob("*.fic"), *folder.glob("*.png")):
        old.unlink()
    expected = {}
    for name, (picture, quality, preset) in cases().items():
        data = codec.encode_picture(picture, quality, preset).data
        (folder / f"{name}.fic").write_bytes(data)
        Image.fromarray(codec.decode(data, out="numpy")).save(folder / f"{name}.png", optimize=True)
        expected[name] = {"quality": quality, "mode": picture.mode, "latents": latents_digest(codec, data)}
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
