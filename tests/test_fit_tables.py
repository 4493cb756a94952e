"""A release's own tables for its latents: what they are made from, and that every decoder uses them."""

import json

import numpy as np
import pytest
import torch
from numpy_decoder import decode_latents
from test_numpy_decoder import GAUSSIAN

from fastcodec import fit_tables
from fastcodec.codec import Codec
from fastcodec.entropy.code_length import code_lengths, code_lengths_of
from fastcodec.entropy.gaussian import COUNT, SCALES, gaussian_tables, support
from fastcodec.errors import UnsupportedError
from fastcodec.fit_tables import count_symbols, tables_of
from fastcodec.images import Picture
from fastcodec.kernels.rans import TableSet
from fastcodec.models.swift import export
from fastcodec.models.swift import release as released

pytestmark = pytest.mark.usefixtures("network_tiles")


@pytest.fixture(scope="module")
def counts(photographs) -> torch.Tensor:
    pictures = [image[:96, :128].copy() for image in photographs.values()]
    return count_symbols(released.load("swift"), pictures)


@pytest.fixture(scope="module")
def tabled(counts, tmp_path_factory):
    """A folder of releases, of which the only one has tables of its own."""
    folder = tmp_path_factory.mktemp("release")
    path = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    identity = export.with_latent_tables(path, tables_of(counts), folder / "new")
    (folder / "index.json").write_text(json.dumps({"swift": [identity]}))
    return (folder / "new").rename(folder / f"swift-{identity}.safetensors")


def test_code_lengths_of_the_gaussian_tables_are_those_of_gaussians():
    found, expected = code_lengths_of(gaussian_tables()), code_lengths()
    assert found.shape == expected.shape
    for index in range(1, COUNT):
        likely = expected[index] < 9
        torch.testing.assert_close(found[index][likely], expected[index][likely], rtol=0, atol=0.06)
        reach = support(SCALES[index])
        sentinel = gaussian_tables().frequencies(index)[-1]
        assert found[index, reach + 1] == pytest.approx(14 - np.log2(sentinel) + 16)
    assert found[0, 0] == 0


def test_without_counts_tables_are_gaussian():
    tables = tables_of(torch.zeros(COUNT, code_lengths().shape[1], dtype=torch.int64))
    for index in range(1, COUNT):
        found, expected = tables.frequencies(index), gaussian_tables().frequencies(index)
        assert tables.first_symbol(index) == gaussian_tables().first_symbol(index)
        assert np.abs(found.astype(int) - expected.astype(int)).max() <= 8  # of 2^14: sums and sentinels differ


def test_counts_decide_where_there_are_many():
    counts = torch.zeros(COUNT, code_lengths().shape[1], dtype=torch.int64)
    counts[40, [0, 1, 2, 447]] = torch.tensor([600_000, 300_000, 90_000, 10_000])
    tables = tables_of(counts)
    frequencies = tables.frequencies(40) / 2**14
    centre = -tables.first_symbol(40)
    assert frequencies[centre] == pytest.approx(0.6, abs=0.01)
    assert frequencies[centre + 1] == pytest.approx(0.15, abs=0.01)
    assert frequencies[centre - 2] == pytest.approx(0.045, abs=0.005)
    assert frequencies[-1] == pytest.approx(0.01, abs=0.002)
    assert np.array_equal(frequencies[:-1], frequencies[:-1][::-1])


def test_symbols_are_counted_once_each(counts, photographs):
    coded = 96 // 16 * 128 // 16 * 256 * fit_tables.QUALITIES_AN_IMAGE * len(photographs)
    assert int(counts.sum()) == coded
    assert int(counts[0, 1:].sum()) == 0  # what is not coded is 0
    assert int(counts[20:, 1:].sum()) > 1000


def test_files_get_smaller_and_every_decoder_reads_them(tabled, photographs, tmp_path):
    export.with_latent_tables(tabled, gaussian_tables(), tmp_path / "gaussian")
    model, before = released.read_model(tabled), released.read_model(tmp_path / "gaussian")
    assert model.tables != before.tables
    assert model.identity != before.identity
    codec, old = Codec(model), Codec(before)
    reference = Codec(released.read_model(tabled, "reference"))
    sizes = np.zeros(2)
    for name, image in photographs.items():
        crop = image[100:228, 60:200]
        files = [coder.encode(crop, quality=60) for coder in (codec, old)]
        sizes += [len(data) for data in files]
        latents = codec.latents(files[0])
        assert torch.equal(reference.latents(files[0]), latents), name
        codec.verify(files[0])
    assert sizes[0] < 0.997 * sizes[1]
    _, latents = decode_latents(files[0], tabled.parent, GAUSSIAN)
    assert np.array_equal(codec.latents(files[0]).numpy(), latents)


def test_the_estimate_is_near_the_file(tabled, photographs):
    codec = Codec(released.read_model(tabled))
    encoded = codec.encode(Picture(photographs["coffee"][:200, :300].copy()), 70)
    assert encoded.estimated_bits == pytest.approx(8 * len(encoded), rel=0.02)


def test_other_sets_are_refused(tmp_path):
    path = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    few = TableSet([(0, [2**14]), (-1, [1, 2**14 - 3, 1, 1])], skip=True)
    with pytest.raises(UnsupportedError, match="latents need 64 tables"):
        export.with_latent_tables(path, few, tmp_path / "new")


def test_the_program(tmp_path, photographs, capsys):
    from PIL import Image

    for i in range(40):
        part = list(photographs.values())[i % 4][:256, : 256 + i]
        Image.fromarray(part).save(tmp_path / f"{i:02}.png")
    path = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    out = tmp_path / "out.safetensors"
    assert fit_tables.main([str(path), str(tmp_path), "--out", str(out), "--count", "2"]) == 0
    assert capsys.readouterr().out.strip() == released.read_model(out).identity.hex()
    assert fit_tables.main([str(tmp_path / "absent"), str(tmp_path), "--out", str(out)]) == 1
    assert "absent" in capsys.readouterr().err
