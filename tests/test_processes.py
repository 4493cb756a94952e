"""Codecs in other processes, forked ones too, and in threads that the end of the process meets at work."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import fastcodec
from fastcodec import Codec, DecodedTensor, Encoded, batch, errors, rans
from fastcodec.errors import CorruptStreamError, ModelMismatchError
from fastcodec.images import to_picture
from fastcodec.kernels import rans64
from fastcodec.models import zoo
from fastcodec.models.swift import release as released

LIMITS = fastcodec.Limits(max_pixels=123_456)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec.load("swift", "cpu", LIMITS)


@pytest.fixture(scope="module")
def images(photographs) -> list[np.ndarray]:
    return [photographs["chelsea"][:40, :56], photographs["coffee"][:32, :44]]


def small_zoo_codec(name: str = "mbt2018-mean") -> Codec:
    torch.manual_seed(3)
    return Codec(zoo.SYSTEMS[name].model(8, 12))


# ---- pickles and copies


def copies(thing):
    yield from (pickle.loads(pickle.dumps(thing, protocol)) for protocol in (2, pickle.HIGHEST_PROTOCOL))
    yield from (copy.copy(thing), copy.deepcopy(thing))


def test_a_codec_is_pickled_by_its_model_device_and_limits(codec, images):
    assert len(pickle.dumps(codec)) < 1000
    blob = codec.encode(images[0])
    pixels = codec.decode(blob, out="numpy")
    for other in copies(codec):
        assert (other.limits, other.device) == (LIMITS, codec.device)
        assert other.model is codec.model  # the weights are in memory once
        assert other.encode(images[0]) == blob
        assert np.array_equal(other.decode(blob, out="numpy"), pixels)


def test_a_codec_of_an_earlier_release_is_pickled_by_its_identity(images):
    earlier = bytes.fromhex(released.available()[-1])
    codec = pickle.loads(pickle.dumps(Codec(released.load("swift", earlier))))
    assert codec.model.identity == earlier
    assert codec.model is released.load("swift", earlier, None)


def test_a_codec_of_a_file_is_pickled_by_its_path(tmp_path, codec, images):
    shutil.copy(released.weights_folder() / f"swift-{codec.model.identity.hex()}.safetensors", tmp_path / "own")
    own = Codec(released.read_model(tmp_path / "own"))
    data = pickle.dumps(own)
    assert len(data) < 1000
    first, second = pickle.loads(data), pickle.loads(data)
    assert first.model is second.model
    assert first.encode(images[0]) == codec.encode(images[0])


def test_a_pickle_whose_file_is_another_one_by_now(tmp_path, codec):
    newest, *_, earlier = released.available()
    shutil.copy(released.weights_folder() / f"swift-{newest}.safetensors", tmp_path / "own")
    data = pickle.dumps(Codec(released.read_model(tmp_path / "own")))
    shutil.copy(released.weights_folder() / f"swift-{earlier}.safetensors", tmp_path / "own")
    with pytest.raises(
        ModelMismatchError, match=f"own: its weights are those of {earlier}, and were those of {newest}"
    ):
        pickle.loads(data)
    (tmp_path / "own").unlink()
    with pytest.raises(ModelMismatchError, match="own: not a released"):
        pickle.loads(data)


def test_a_changed_model_is_pickled_with_its_weights(codec, images):
    changed = Codec(replace(codec.model, gain=codec.model.gain * 0.5))
    assert changed.encode(images[0]) != codec.encode(images[0])
    for other in copies(changed):
        assert other.encode(images[0]) == changed.encode(images[0])


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean", "mbt2018-checkerboard", "cheng2020-serial"])
def test_codecs_of_the_zoo_are_pickled_with_their_weights(name, images):
    torch.manual_seed(3)
    codec = Codec(zoo.SYSTEMS[name].model(*((8, 12) if len(zoo.SYSTEMS[name].channels[0]) == 2 else (8,))))
    blob = codec.encode(images[0])
    for other in copies(codec):
        assert (other.identity, other.quality, other.limits) == (codec.identity, codec.quality, codec.limits)
        assert other.encode(images[0]) == blob
        assert np.array_equal(other.decode(blob, out="numpy"), codec.decode(blob, out="numpy"))


def test_an_integer_codec_is_pickled_with_its_report(images):
    codec = fastcodec.integerize(small_zoo_codec(), images)
    for other in copies(codec):
        assert other.machine == ""
        assert other.model.report == codec.model.report
        assert other.encode(images[0]) == codec.encode(images[0])


def test_results_are_pickled(codec, images):
    encoded = codec.encode(to_picture(images[0]))
    facts, picture = fastcodec.info(encoded), codec.decode(encoded, out="picture")
    for thing in (encoded, facts, LIMITS):
        assert all(other == thing for other in copies(thing))
    assert isinstance(encoded, Encoded)
    assert all(np.array_equal(other.pixels, picture.pixels) for other in copies(picture))


def test_decoded_tensors_are_pickled_when_they_are_there(codec, images):
    blob = codec.encode(images[0])
    decoded = codec.decode_tensor([blob, blob])
    for other in copies(decoded):
        other.check()
        assert torch.equal(other.pixels, decoded.pixels)

    def damaged():
        raise CorruptStreamError("item 1: damaged", 0)

    with pytest.raises(CorruptStreamError, match="item 1"):
        pickle.dumps(DecodedTensor(decoded.pixels, damaged))


def test_errors_are_pickled_with_all_that_they_say():
    kinds = [kind for name in errors.__all__ if inspect.isclass(kind := getattr(errors, name))]
    assert len(kinds) > 10
    for kind in kinds:
        for other in copies(kind("the cause")):
            assert type(other) is kind
            assert str(other) == "the cause"
    for other in copies(CorruptStreamError("payload 1 of a batch: no end", 1, "no end").for_tile(7)):
        assert (str(other), other.tile, other.cause) == ("tile 7 is damaged: no end", 7, "no end")
    assert all(other.running for other in copies(batch.StoppedError(OSError("full"), True)))


def test_tables_and_passes_are_pickled_and_decoders_are_not():
    tables = rans.gaussian_tables()
    indexes, symbols = torch.ones(4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int16)
    item = rans.Pass(symbols, indexes, tables)
    (payload,) = rans.encode([[item]])
    for other in copies(item):
        assert other.tables == tables
        assert rans.encode([[other]]) == [payload]
    decoder = rans.Decoder([payload])
    compatible = rans64.CdfTables.from_matrix(
        *(torch.tensor(values, dtype=torch.int32) for values in ([[0, 1 << 15, 1 << 16]], [3], [0]))
    )
    for thing in (decoder, compatible):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="neither pickled nor copied"):
                copied(thing)
    assert torch.equal(decoder.decode([indexes], tables)[0], symbols)


# ---- processes that start anew


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pools_of_processes_encode_and_decode(method, codec, images):
    other = small_zoo_codec()
    blobs, foreign = [codec.encode(image) for image in images], [other.encode(image) for image in images]
    damaged = bytearray(blobs[0])
    damaged[-9] ^= 1
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map(codec.encode, images) == blobs
        assert pool.map(other.encode, images) == foreign
        for used, files in ((codec, blobs), (other, foreign)):
            for image, file in zip(pool.map(used.decode, files), files, strict=True):
                assert np.array_equal(image, used.decode(file))
        with pytest.raises(CorruptStreamError, match="tile 0 is damaged") as caught:
            pool.map(codec.verify, [blobs[1], bytes(damaged)])
    assert caught.value.tile == 0


class Files(Dataset):
    """Compressed pictures, decoded by whoever loads them."""

    def __init__(self, codec: Codec, blobs: list[bytes]) -> None:
        self.codec, self.blobs = codec, blobs

    def __len__(self) -> int:
        return len(self.blobs)

    def __getitem__(self, number: int) -> torch.Tensor:
        return self.codec.decode(self.blobs[number], out="tensor")


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_the_workers_of_a_data_loader_decode(method, codec, images):
    blobs = [codec.encode(image[:32, :32]) for image in (*images, *images)]
    loader = DataLoader(Files(codec, blobs), batch_size=2, num_workers=2, multiprocessing_context=method)
    found = [picture for pictures in loader for picture in pictures]
    assert all(torch.equal(a, codec.decode(b, out="tensor")) for a, b in zip(found, blobs, strict=True))


# ---- forks


def run(script: str, threads: int, *arguments: str, timeout: float = 100) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "GOMP_SPINCOUNT": "10000"}
    # Python 3.12 warns of forks beside threads, and of OpenMP's.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", script, *arguments]
    folder = Path(__file__).resolve().parent
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, cwd=folder)


FORKS = """
import os, signal, sys, threading
import numpy as np, torch
import fastcodec
from fastcodec import rans
from test_processes import small_zoo_codec

image = np.random.default_rng(0).integers(0, 255, (256, 512, 3), dtype=np.uint8)
swift, other = fastcodec.Codec.load("swift", "cpu"), small_zoo_codec()
tables, indexes = rans.gaussian_tables(), torch.full((400, 400), 9, dtype=torch.uint8)
symbols = torch.zeros(400, 400, dtype=torch.int16)


def work():
    out = []
    for codec, region in ((swift, (300, 100, 99, 77)), (other, None)):
        blob = codec.encode(image)
        codec.verify(blob)
        out += [blob, codec.decode(blob, region=region, out="numpy").tobytes(), codec.latents(blob).numpy().tobytes()]
    (payload,) = rans.encode([[rans.Pass(symbols, indexes, tables)]])
    decoder = rans.Decoder([payload])
    assert torch.equal(decoder.decode([indexes], tables)[0], symbols)
    decoder.finish()
    return out


torch.set_num_threads(1)  # as the child runs: more may round otherwise
expected, over = work(), threading.Event()
torch.set_num_threads(2)
work()


def busy():
    while not over.is_set():
        swift.decode(expected[0])


threads = [threading.Thread(target=busy) for _ in range(int(sys.argv[1]))]
for thread in threads:
    thread.start()
for _ in range(int(sys.argv[2])):
    if (child := os.fork()) == 0:
        signal.alarm(30)  # ends the child if it hangs
        os._exit(0 if work() == expected and torch.get_num_threads() == 1 else 9)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
over.set()
for thread in threads:
    thread.join()
work()
assert torch.get_num_threads() == 2  # the parent is as it was
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("busy, children", [(0, 1), (2, 3)])
def test_a_forked_child_goes_on(busy, children):
    """After the parent has run on two threads, and while its other threads are at work."""
    result = run(FORKS, 2, str(busy), str(children))
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["0"] * children, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_pool_goes_on(codec, images):
    large = [np.tile(image, (8, 6, 1)) for image in images]  # enough for two threads
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # as the child runs: more may round otherwise
        blobs = [codec.encode(image) for image in large]
        pixels = [codec.decode(blob, out="numpy") for blob in blobs]
        torch.set_num_threads(2)
        codec.encode(large[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as above
            with multiprocessing.get_context("fork").Pool(2) as pool:
                assert pool.map_async(codec.encode, large).get(60) == blobs
                for found, expected in zip(pool.map_async(codec.decode, blobs).get(60), pixels, strict=True):
                    assert np.array_equal(found, expected)
    finally:
        torch.set_num_threads(threads)


GPU_FORK = """
import os, numpy as np, fastcodec
from fastcodec.errors import UnavailableError
codec = fastcodec.Codec.load("swift", "cuda")
blob = codec.encode(np.zeros((64, 64, 3), np.uint8))
if (child := os.fork()) == 0:
    done = 0
    for call in (lambda: codec.decode(blob), lambda: fastcodec.Codec.load("swift", "cuda")):
        try:
            call()
        except UnavailableError as error:
            done += "before a fork" in str(error)
    for device in ("auto", "cpu"):
        done += fastcodec.Codec.load("swift", device).decode(blob).size == (64, 64)
    os._exit(done)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.gpu
def test_a_gpu_does_not_survive_a_fork():
    result = run(GPU_FORK, 1)
    assert (result.returncode, result.stdout.strip()) == (0, "4"), result.stderr


# ---- the end of the process


DAEMONS = """
import sys, threading, time
import numpy as np
import fastcodec
from test_processes import small_zoo_codec

image = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
swift, other = fastcodec.Codec.load("swift", "cpu"), small_zoo_codec()
blob, foreign = swift.encode(image), other.encode(image)
calls = (
    lambda: swift.decode(blob), lambda: swift.encode(image), lambda: swift.verify(blob),
    lambda: swift.decode_tensor([blob]).check(), lambda: other.decode(foreign), lambda: other.encode(image),
)


def work(call):
    while True:
        call()


for call in calls * 2:
    threading.Thread(target=work, args=(call,), daemon=True).start()
time.sleep(0.3)
"""


def test_the_process_ends_well_while_daemon_threads_work():
    result = run(DAEMONS, 1)
    assert (result.returncode, result.stderr) == (0, "")


ENDING = """
import atexit, threading, time

def wait():  # runs after the codec's own handler, as it was registered before
    thread.join(30)
    print(found, thread.is_alive())

atexit.register(wait)
import numpy as np
import fastcodec
from fastcodec import calls

calls._WAIT_SECONDS = 0.3
swift, found = fastcodec.Codec.load("swift", "cpu"), []
blob = swift.encode(np.zeros((16, 16, 3), np.uint8))

def work():
    try:
        while True:
            swift.decode(blob)
    except fastcodec.FastcodecError as error:
        found.append(type(error).__name__)

thread = threading.Thread(target=work, daemon=True)
thread.start()
atexit.register(lambda: print(swift.decode(blob).size))
"""


def test_a_thread_that_the_end_of_the_process_waits_for_is_told():
    result = run(ENDING, 1)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.split("\n")[:2] == ["(16, 16)", "['UnavailableError'] False"]
