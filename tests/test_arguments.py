"""What callers hand over: files as bytes, paths and file objects, single things and batches, devices."""

from __future__ import annotations

import array
import io
import mmap
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_processes import small_zoo_codec

import fastcodec
from fastcodec import info
from fastcodec.codec import Codec
from fastcodec.container import Container
from fastcodec.errors import (
    CorruptStreamError,
    ImageError,
    LimitError,
    NotAFicFileError,
    SymbolRangeError,
    UnavailableError,
)
from fastcodec.models.zoo import checkpoints as convert

KINDS = ["swift", "zoo"]


@pytest.fixture(scope="module")
def codecs() -> dict[str, Codec | Codec]:
    return {"swift": Codec.load("swift", "cpu"), "zoo": small_zoo_codec()}


@pytest.fixture(scope="module")
def blobs(codecs, photographs) -> dict[str, bytes]:
    return {kind: codec.encode(photographs["chelsea"][:40, :56]) for kind, codec in codecs.items()}


def calls(codec) -> dict:
    """All that read a file."""
    return {
        "info": info,
        "decode": lambda file: codec.decode(file, out="numpy").tolist(),
        "decode_picture": lambda file: codec.decode(file, out="picture").pixels.tolist(),
        "decode_batch": lambda file: codec.decode_batch([file], out="numpy")[0].tolist(),
        "decode_pictures": lambda file: codec.decode_batch([file], out="picture")[0].pixels.tolist(),
        "decode_tensor": lambda file: codec.decode_tensor([file]).pixels.tolist(),
        "verify": codec.verify,
        "latents": lambda file: codec.latents(file).tolist(),
    }


class OfPath(os.PathLike):
    """A path of no class that Python has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


# ---- a file


@pytest.mark.parametrize("kind", KINDS)
def test_every_call_takes_bytes_paths_and_file_objects(kind, codecs, blobs, tmp_path):
    blob, path = blobs[kind], tmp_path / "a.fic"
    path.write_bytes(blob)
    spread = np.repeat(np.frombuffer(blob, np.uint8), 3)
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        files = [
            bytearray(blob),
            memoryview(blob),
            array.array("B", blob),
            np.frombuffer(blob, np.uint8),
            spread[::3],  # with strides
            memoryview(spread)[::3],
            mapped,
            path,
            str(path),
            OfPath(path),
        ]
        for name, call in calls(codecs[kind]).items():
            expected = call(blob)
            for file in files:
                assert call(file) == expected, (name, type(file))
            with open(path, "rb") as opened:
                assert call(opened) == expected, name
            with open(path, "rb", buffering=0) as opened:
                assert call(opened) == expected, name
            behind = io.BytesIO(b"before" + blob)
            behind.seek(6)  # read from where it is
            assert call(behind) == expected, name


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_told_what_one_is(kind, codecs, tmp_path):
    (tmp_path / "text").write_text("text")
    for name, call in calls(codecs[kind]).items():
        for thing in (3, None, 1.5, ["a"], object()):
            with pytest.raises(TypeError, match=r"its bytes \(.*its path \(.*a binary file object, not as"):
                call(thing)
        with open(tmp_path / "text") as stream, pytest.raises(TypeError, match=r"text: open .* as text.*'rb'|as text"):
            call(stream)
        with pytest.raises(TypeError, match=r"gives bytes, not str"):
            call(type("Reader", (), {"read": lambda self: "text"})())
        with pytest.raises(NotAFicFileError, match=r"not a .fic file"):
            call(np.zeros(40))
        with pytest.raises(NotAFicFileError, match=r"empty file"):
            call(memoryview(b""))
        assert name


@pytest.mark.parametrize("kind", KINDS)
def test_errors_name_the_file(kind, codecs, blobs, tmp_path):
    path = tmp_path / "a.fic"
    damaged = bytearray(blobs[kind])
    damaged[-9] ^= 1
    for name, call in calls(codecs[kind]).items():
        path.write_bytes(b"something else")
        with pytest.raises(NotAFicFileError, match=f"^(item 0: )?{re.escape(str(path))}: not a .fic file$"):
            call(path)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=re.escape(str(path))) as missing:
            call(str(path))
        assert missing.value.filename == str(path)
        assert str(missing.value).count(str(path)) == 1
        if name == "info":
            continue  # reads no tile
        path.write_bytes(damaged)
        with open(path, "rb") as stream:
            for file in (path, stream):
                with pytest.raises(
                    CorruptStreamError, match=f"^(item 0: )?{re.escape(str(path))}: tile 0 is "
                ) as caught:
                    call(file)
                assert caught.value.tile == 0
    with pytest.raises(LimitError, match=f"^{re.escape(str(path))}: 56 x 40 pixels exceed"):
        info(path, fastcodec.Limits(max_pixels=9))


# ---- batches


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_a_batch_of_files_name_the_item(kind, codecs, blobs, tmp_path):
    """Whatever is wrong with it, and whichever others it is decoded with; type and attributes stay."""
    codec, blob = codecs[kind], blobs[kind]
    damaged = bytearray(blob)
    damaged[-9] ^= 1
    path = tmp_path / "a.fic"
    path.write_bytes(damaged)
    wrong = {
        "tile 0 is": (bytes(damaged), CorruptStreamError),
        f"{re.escape(str(path))}: tile 0 is": (path, CorruptStreamError),
        "the file ends within": (blob[:-5], CorruptStreamError),
        "empty file": (b"", NotAFicFileError),
        "a .fic file is given as": (7, TypeError),
        ".*No such file": ("nowhere.fic", FileNotFoundError),
    }
    for message, (file, error) in wrong.items():
        files = [blob, blob, blob, file, blob]
        for call in (codec.decode_batch, lambda files: codec.decode_tensor(files).check()):
            with pytest.raises(error) as caught:
                call(files)
            found = str(caught.value)
            assert re.match(
                f"item 3: {message}" if error is not FileNotFoundError else r".*item 3: No such file", found
            )
            if "tile 0" in message:
                assert caught.value.tile == 0
                assert pickle.loads(pickle.dumps(caught.value)).tile == 0


def test_payloads_that_only_the_coder_can_refuse_name_the_item(codecs, blobs, monkeypatch):
    """Of a group that is decoded at once: the CRC holds, and the payload is not what an encoder writes."""
    monkeypatch.setattr("fastcodec.container._tile_crc", lambda *_: 0)
    blob = bytearray(blobs["swift"])
    blob[-4:] = bytes(4)
    damaged = bytearray(blob)
    damaged[-30] ^= 0xFF
    for call in (codecs["swift"].decode_batch, lambda files: codecs["swift"].decode_tensor(files).check()):
        with pytest.raises(CorruptStreamError, match=r"^item 2: tile 0 is damaged") as caught:
            call([blob, blob, damaged])
        assert caught.value.tile == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_several_files(kind, codecs, blobs):
    codec, blob = codecs[kind], blobs[kind]
    for call in (codec.decode_batch, codec.decode_tensor):
        for single in (blob, bytearray(blob), memoryview(blob), "a.fic", Path("a.fic"), io.BytesIO(blob)):
            with pytest.raises(TypeError, match=r"several files are needed.*list"):
                call(single)
    assert codec.decode_batch([]) == codec.decode_batch([], out="picture") == []
    with pytest.raises(ValueError, match=r"there are none"):
        codec.decode_tensor([])
    other = codec.encode(np.zeros((8, 9), np.uint8))
    with pytest.raises(ValueError, match=r"item 2 differs from item 0"):
        codec.decode_tensor([blob, blob, other])
    assert [image.size for image in codec.decode_batch(iter([blob, other]))] == [(56, 40), (9, 8)]


@pytest.mark.parametrize("kind", KINDS)
def test_errors_of_a_batch_of_images_name_the_item(kind, codecs):
    codec, image = codecs[kind], np.zeros((8, 9, 3), np.uint8)
    for wrong, error in ((np.zeros((0, 4), np.uint8), ImageError), (image.astype(float), TypeError), ("a", TypeError)):
        with pytest.raises(error, match=r"^item 1: "):
            codec.encode_batch([image, wrong])


def test_what_is_wrong_with_a_call_is_no_item_s(codecs, blobs):
    codec, image = codecs["swift"], np.zeros((8, 9, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^quality 101"):
        codec.encode_batch([image, image], 101)
    with pytest.raises(ValueError, match=r"^precision 'slow'"):
        codec.decode_batch([blobs["swift"]], precision="slow")


def test_errors_of_encoding_a_group_name_the_item(codecs, monkeypatch):
    """Images of one size go through the network at once; which of them it failed at is told all the same."""
    codec, images = codecs["swift"], [np.full((16, 16, 3), level, np.uint8) for level in (10, 20, 250, 30)]
    engine = codec._engine(codec.model)
    encode = type(engine).encode

    def refusing(self, pictures, *arguments):
        if any(picture.max() > 200 for picture in pictures):
            raise SymbolRangeError("a symbol does not fit")
        return encode(self, pictures, *arguments)

    monkeypatch.setattr(type(engine), "encode", refusing)
    with pytest.raises(SymbolRangeError, match=r"^item 2: a symbol does not fit$"):
        codec.encode_batch(images)

    def full(self, pictures, *arguments):
        raise MemoryError("no memory")

    monkeypatch.setattr(type(engine), "encode", full)
    with pytest.raises(MemoryError, match=r"^items 0, 1, 2, 3: no memory$"):  # nobody is to blame alone
        codec.encode_batch(images)


def test_a_container_tells_the_tile(blobs):
    damaged = bytearray(blobs["swift"])
    damaged[-9] ^= 1
    file = fastcodec.container.read(damaged)
    assert isinstance(file, Container)
    with pytest.raises(CorruptStreamError) as caught:
        file.tile(0)
    assert caught.value.tile == 0


# ---- devices


def loads(tmp_path):
    model = small_zoo_codec().model
    path = tmp_path / "model.pth"
    convert.save(model, path)
    return {
        "Codec.load": lambda device: Codec.load("swift", device),
        "Codec.load of a file": lambda device: Codec.load(path, device),
        "from_compressai": lambda device: fastcodec.from_compressai(model.state_dict(), "mbt2018-mean", device=device),
    }


def test_devices_are_named_as_in_pytorch(tmp_path):
    for name, load in loads(tmp_path).items():
        for device in ("cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)):
            assert load(device).device == torch.device("cpu"), (name, device)
        assert load(None).device == load("cpu" if name == "from_compressai" else "auto").device
        for device in ("gpu", "meta", torch.device("meta"), "cuda:x", "cpu:1", "", -1, "0"):
            with pytest.raises(ValueError, match=r"use 'auto' \(or None\), 'cpu', 'cuda', 'cuda:N', a torch.device"):
                load(device)
        for device in (1.5, True, [], b"cpu"):
            with pytest.raises(TypeError, match=r"use 'auto' \(or None\), 'cpu', 'cuda', 'cuda:N', a torch.device"):
                load(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpus_that_are_not_there_are_unavailable_however_named(tmp_path):
    for load in loads(tmp_path).values():
        for device in (0, 1, np.int64(0), torch.device("cuda"), torch.device("cuda", 1), "cuda", "cuda:1"):
            with pytest.raises(UnavailableError, match=r"finds no CUDA device"):
                load(device)


@pytest.mark.gpu
def test_a_gpu_may_be_named_by_number_or_device(tmp_path):
    for load in loads(tmp_path).values():
        for device in (0, np.int64(0), torch.device("cuda"), torch.device("cuda", 0), "cuda", "cuda:0"):
            assert load(device).device == torch.device("cuda", 0)
        with pytest.raises(UnavailableError, match=r"99"):
            load(99)
