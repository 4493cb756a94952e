"""What travels to a machine with a GPU: the validation split as it is, and training images that no two parts share."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.gpu import pack as gpu_pack
from fastcodec.crops import VALIDATION_EVERY, CropSource

IMAGES = 240
SIDE = 64


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / f"shard{i % 3}" / f"{i // 3:03}.bmp"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((SIDE, SIDE, 3), random.integers(256, size=3), np.uint8)).save(path)
    (folder / "SOURCES.tsv").write_text("no image")
    return folder


def colours(images: list[np.ndarray]) -> list[tuple]:
    return sorted(tuple(image[0, 0]) for image in images)


def test_the_parts_hold_out_the_same_images_and_share_no_other(data, tmp_path):
    whole = CropSource(data, SIDE, seed=1)
    trained = []
    for part in range(1, 4):
        found = gpu_pack.pack(data, tmp_path / str(part), 10, (part, 3))
        source = CropSource(tmp_path / str(part) / "train", SIDE, seed=1)
        assert found["validation"] == IMAGES // VALIDATION_EVERY == len(source.validation)
        assert found["training"] == len(source.images)
        assert np.array_equal(source.validation_batch(SIDE), whole.validation_batch(SIDE))
        assert np.array_equal(source.validation_graphics(SIDE), whole.validation_graphics(SIDE))
        trained += source.images
    assert colours(trained) == colours(whole.images)


def test_it_keeps_to_the_size_and_says_what_it_holds(data, tmp_path, capsys):
    size = (data / "shard0" / "000.bmp").stat().st_size
    megabytes = (IMAGES // VALIDATION_EVERY + 60) * size / 1e6
    kodak = tmp_path / "kodak"
    kodak.mkdir()
    out = tmp_path / "out"
    assert gpu_pack.main([str(data), str(out), "--megabytes", str(megabytes)]) == 0
    assert "'training': 60, 'of': 234" in capsys.readouterr().out
    assert sum(p.stat().st_size for p in (out / "train").glob("*.bmp")) <= megabytes * 1e6
    picture = np.random.default_rng(1).integers(256, size=(8, 12, 3), dtype=np.uint8)
    Image.fromarray(picture).save(kodak / "kodim01.png")
    found = gpu_pack.pack(data, out, 10, (1, 1), kodak)
    assert (found["kodak"], found["training"]) == (1, 234)
    assert np.array_equal(np.asarray(Image.open(out / "kodak" / "kodim01.webp")), picture)
    assert found["bytes"] == sum(p.stat().st_size for p in out.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--megabytes", "0.001"], "too few"), (["--part", "3/2"], "not a part"), (["--part", "x"], "not a part")],
)
def test_what_cannot_be_is_said(data, tmp_path, capsys, options, message):
    try:
        status = gpu_pack.main([str(data), str(tmp_path / "out"), *options])
    except SystemExit as end:
        status = end.code
    assert status
    assert message in capsys.readouterr().err


def test_a_folder_without_images_is_refused(tmp_path, capsys):
    assert gpu_pack.main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 1
    assert "0 images; need 40" in capsys.readouterr().err
