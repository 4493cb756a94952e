"""Golden files: what this model wrote once decodes to the same latents, and within a level to the same pixels.

They change only together with the model: `python tests/golden/regenerate.py`. Those of the release before stay as long
as the release does.
"""

import json

import numpy as np
import pytest
from golden.regenerate import EARLIER, FOLDER, LARGEST, cases, latents_digest, regenerate
from PIL import Image

import fastcodec
from fastcodec.codec import Codec
from fastcodec.models.swift import release as released

EXPECTED = json.loads((FOLDER / "expected.json").read_text())
SETS = {folder: json.loads((folder / "expected.json").read_text()) for folder in (FOLDER, FOLDER / EARLIER)}
COMMAND = "python tests/golden/regenerate.py"


@pytest.fixture(scope="module")
def codec() -> Codec:
    if EXPECTED["model"] not in released.available("swift"):
        pytest.fail(f"the golden files' model {EXPECTED['model']} is gone: run `{COMMAND}`", pytrace=False)
    return Codec.load("swift")


def test_the_golden_files_are_of_the_default_model():
    default = released.available("swift")[0]
    assert EXPECTED["model"] == default, (
        f"the default model is now {default}, the golden files are of {EXPECTED['model']}: "
        f"run `{COMMAND}` and commit both together"
    )


def test_the_golden_files_are_complete_and_small():
    assert sorted(EXPECTED["files"]) == sorted(cases())
    stored = {path.name for path in FOLDER.iterdir() if path.suffix in (".fic", ".png")}
    assert stored == {name + suffix for name in EXPECTED["files"] for suffix in (".fic", ".png")}
    assert sum((FOLDER / name).stat().st_size for name in stored) <= LARGEST


def test_the_earlier_files_are_of_the_release_before():
    assert SETS[FOLDER / EARLIER]["model"] == released.available("swift")[1]


@pytest.mark.parametrize(
    "folder, name",
    [pytest.param(f, name, id=f"{f.name}-{name}") for f, found in SETS.items() for name in found["files"]],
)
def test_a_golden_file_decodes(folder, name, codec):
    data, expected = (folder / f"{name}.fic").read_bytes(), SETS[folder]["files"][name]
    info = fastcodec.info(data)
    assert (info.model, info.quality, info.mode) == (SETS[folder]["model"], expected["quality"], expected["mode"])
    assert info.lossless_tiles == expected.get("lossless_tiles", 0)
    if expected["latents"] is not None:  # all tiles are lossless
        assert latents_digest(codec, data) == expected["latents"]
    with Image.open(folder / f"{name}.png") as image:
        pixels = np.asarray(image)
    decoded = codec.decode(data, out="numpy")
    assert decoded.shape == pixels.shape
    assert np.abs(decoded.astype(int) - pixels).max() <= 1
    if "A" in info.mode:
        assert (decoded[..., -1] == pixels[..., -1]).all()


def test_they_are_not_replaced_while_the_model_is_the_same(tmp_path):
    (tmp_path / "expected.json").write_text(json.dumps({"model": released.available("swift")[0]}))
    (tmp_path / "old.fic").write_bytes(b"precious")
    with pytest.raises(SystemExit, match="already"):
        regenerate(tmp_path)
    assert (tmp_path / "old.fic").read_bytes() == b"precious"


def test_a_new_model_replaces_them_all(tmp_path):
    (tmp_path / "expected.json").write_text(json.dumps({"model": "000000000000"}))
    (tmp_path / "old.fic").write_bytes(b"of another model")
    assert regenerate(tmp_path) == released.available("swift")[0]
    written = json.loads((tmp_path / "expected.json").read_text())
    assert written["model"] == released.available("swift")[0]
    assert sorted(path.stem for path in tmp_path.glob("*.fic")) == sorted(written["files"])
