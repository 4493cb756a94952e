"""The codec's GPU engine: the Triton kernels, the CUDA coder, and the program that drives them.

Where there is no GPU, the kernels run in Triton's interpreter and the coder in the host shim (simulated_gpu.py), driven
by the same Python as on a GPU. The interpreter is slow: `test_a_kodak_crop` runs everything in it, `test_files_...` the
entropy side, and the other tests, which are about the program, the kernels' references. Tests marked `gpu` are for a
real GPU.
"""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from made_releases import write_grouped
from PIL import Image
from simulated_gpu import simulated_gpu
from simulation import by_cpu
from torch.utils._python_dispatch import TorchDispatchMode

from fastcodec import container, lossless
from fastcodec.codec import Codec
from fastcodec.container import TileData
from fastcodec.engines import gpu, gpu_batch
from fastcodec.errors import CorruptStreamError, ImageError, UnavailableError
from fastcodec.fit_tables import tables_of
from fastcodec.images import Picture
from fastcodec.kernels import rans
from fastcodec.kernels.device import Fetch
from fastcodec.kernels.rans.session import DecodePlan, shape_of
from fastcodec.kernels.triton import hyper_synthesis, parameters, pixels, pointwise, residual, upsample
from fastcodec.models.swift import export
from fastcodec.models.swift import release as released

pytestmark = pytest.mark.usefixtures("network_tiles")

TRANSFORMS = (pixels, pointwise, residual, upsample)
ENTROPY = (hyper_synthesis, parameters)


@pytest.fixture(scope="module")
def cpu() -> Codec:
    return Codec.load("swift", "cpu")


@contextmanager
def simulation(request) -> Iterator[Codec]:
    with simulated_gpu(request.getfixturevalue("simulator")):
        yield Codec.load("swift", "cuda")


def on(request, *references) -> Iterator[Codec]:
    """A codec on what a fixture's parameter says; in simulation, the kernels of these modules are their references."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")
        yield Codec.load("swift", "cuda")
        return
    with simulation(request) as codec, pytest.MonkeyPatch.context() as patch:
        for module in references:
            for name in {"on_gpu", "runs_kernel"} & vars(module).keys():
                patch.setattr(module, name, lambda tensor: False)
        yield codec


PLACES = ["simulated", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=PLACES)
def codec(request) -> Iterator[Codec]:
    yield from on(request, *ENTROPY, *TRANSFORMS)


@pytest.fixture(params=PLACES)
def interpreted(request) -> Iterator[Codec]:
    yield from on(request, *TRANSFORMS)


@pytest.fixture
def engine(codec, monkeypatch) -> gpu.GpuEngine:
    """With nothing remembered from other tests."""
    engine = codec._engine(codec.model)
    monkeypatch.setattr(engine, "_remembered", type(engine._remembered)())
    return engine


def photo(photographs, width: int, height: int, left: int = 60, top: int = 40) -> np.ndarray:
    image = photographs["astronaut"][top : top + height]
    return np.tile(image, (1, 1 + (left + width) // image.shape[1], 1))[:, left : left + width]


def difference(a, b) -> int:
    a, b = np.asarray(a).astype(int), np.asarray(b).astype(int)
    assert a.shape == b.shape
    return int(np.abs(a - b).max(initial=0))


def damaged(
    data: bytes, number: int, by=lambda payload: payload[:-9] + bytes([payload[-9] ^ 1]) + payload[-8:]
) -> bytes:
    """A file with one tile's payload changed and all checksums right."""
    parsed = container.read(data)
    tiles = [parsed.tile(n) for n in range(parsed.header.grid.tile_count)]
    tiles[number] = TileData(by(bytes(tiles[number].payload)), tiles[number].alpha)
    return container.write(parsed.header, tiles)


@contextmanager
def with_model(codec: Codec, model: released.Model) -> Iterator[Codec]:
    """The codec with another model than the shipped one."""
    before, codec.model = codec.model, model
    try:
        yield codec
    finally:
        codec.model = before
        codec._engines.pop(model.identity, None)


@pytest.fixture(scope="module", params=[(64, 192), (32, 96, 128)], ids=str)
def grouped(request, tmp_path_factory, photographs) -> released.Model:
    path = write_grouped(request.param, tmp_path_factory.mktemp("model"), photographs["astronaut"])
    return released.read_model(path)


# ---- the same files


@pytest.mark.parametrize("width, height, quality", [(1, 1, 60), (33, 40, 5), (50, 17, 90)])
def test_files_in_groups_of_channels(width, height, quality, cpu, interpreted, grouped, photographs):
    image = photo(photographs, width, height)
    with with_model(cpu, grouped), with_model(interpreted, grouped):
        for writer in (cpu, interpreted):
            data = writer.encode(image, quality=quality)
            assert torch.equal(interpreted.latents(data), cpu.latents(data))
            assert difference(interpreted.decode(data), cpu.decode(data)) <= 1
            interpreted.verify(data)


def test_files_in_tables_of_a_release(cpu, interpreted, photographs, tmp_path):
    shipped = released.weights_folder() / f"swift-{released.available()[0]}.safetensors"
    counts = torch.randint(0, 300, (64, 448), generator=torch.Generator().manual_seed(1))
    export.with_latent_tables(shipped, tables_of(counts.cumsum(1).flip(1)), tmp_path / "new")
    model, image = released.read_model(tmp_path / "new"), photo(photographs, 50, 40)
    with with_model(cpu, model), with_model(interpreted, model):
        for writer in (cpu, interpreted):
            data = writer.encode(image, quality=60)
            assert torch.equal(interpreted.latents(data), cpu.latents(data))
            assert difference(interpreted.decode(data), cpu.decode(data)) <= 1


def test_batches_in_groups_of_channels(cpu, codec, grouped, photographs):
    """Several tiles, qualities and shapes together, and each shape again: by the second time as a graph."""
    images = [photo(photographs, w, h, left) for left, (w, h) in enumerate([(40, 20), (20, 40), (40, 20), (1300, 18)])]
    with with_model(cpu, grouped), with_model(codec, grouped):
        files = [cpu.encode(image, quality=q) for image, q in zip(images, (10, 90, 55, 100), strict=True)]
        for _ in range(3):
            for data, decoded in zip(files, codec.decode_batch(files), strict=True):
                assert difference(decoded, cpu.decode(data)) <= 1
        for data, image in zip(codec.encode_batch(images, quality=70), images, strict=True):
            assert torch.equal(codec.latents(data), cpu.latents(data))
            assert difference(cpu.decode(data), cpu.decode(cpu.encode(image, quality=70))) < 20


@pytest.mark.parametrize("width, height, quality", [(1, 1, 5), (1, 40, 60), (40, 1, 100), (33, 40, 5), (50, 17, 60)])
def test_files_of_the_cpu(width, height, quality, cpu, interpreted, photographs):
    codec, data = interpreted, cpu.encode(photo(photographs, width, height), quality=quality)
    assert torch.equal(codec.latents(data), cpu.latents(data))
    assert difference(codec.decode(data), cpu.decode(data)) <= 1
    codec.verify(data)


@pytest.mark.parametrize("width, height", [(1, 1), (17, 40)])
def test_files_for_the_cpu(width, height, cpu, interpreted, photographs):
    codec = interpreted
    data = codec.encode(photo(photographs, width, height), quality=60)
    assert torch.equal(codec.latents(data), cpu.latents(data))
    assert difference(codec.decode(data), cpu.decode(data)) <= 1


def test_a_kodak_crop(request, cpu, kodak):
    """Every kernel interpreted, on two images at once; and a file that this writes."""
    with simulation(request) as codec:
        images = [np.asarray(Image.open(path).convert("RGB"))[200:264, 200:280] for path in (kodak[4], kodak[14])]
        files = cpu.encode_batch(images, quality=50, preset="latency")
        for data, decoded in zip(files, codec.decode_batch(files, out="numpy"), strict=True):
            assert torch.equal(codec.latents(data), cpu.latents(data))
            assert difference(decoded, cpu.decode(data)) <= 1
        data = codec.encode(images[0], quality=50)
    assert len(data) < 1.02 * len(cpu.encode(images[0], quality=50))
    assert difference(cpu.decode(data), cpu.decode(files[0])) < 30


def test_equal_latents_give_equal_bytes(cpu, codec, engine, photographs, monkeypatch):
    """The transforms may differ in their last bits between devices; so both code what the GPU's have made."""
    image, made = photo(photographs, 70, 50), {}

    class Keeping:
        def __getattr__(self, name):
            def call(*arguments):
                made[name] = getattr(transforms, name)(*arguments)
                return made[name]

            return call

    transforms = engine.transforms
    monkeypatch.setattr(engine, "transforms", Keeping())
    written = container.read(codec.encode(image, quality=60)).tile(0).payload
    y, z = made["analysis"].cpu(), made["hyper_analysis"].cpu()
    passes = cpu._engine(cpu.model)._code_tile(y.permute(0, 3, 1, 2), z, *y.shape[1:3], 60)
    with by_cpu():
        [payload] = rans.encode([[rans.Pass(s.flatten(0, -2), i[0], tables) for s, i, tables in passes]])
    assert written == payload


def test_batches_of_any_sizes_and_qualities(cpu, codec, photographs):
    images = [photo(photographs, w, h, left) for left, (w, h) in enumerate([(40, 20), (20, 40), (40, 20), (40, 20)])]
    files = [cpu.encode(image, quality=q) for image, q in zip(images, (10, 90, 55, 100), strict=True)]
    for data, decoded in zip(files, codec.decode_batch(files), strict=True):
        assert difference(decoded, cpu.decode(data)) <= 1
    for data, image in zip(codec.encode_batch(images, quality=70), images, strict=True):
        assert torch.equal(codec.latents(data), cpu.latents(data))
        assert difference(cpu.decode(data), cpu.decode(cpu.encode(image, quality=70))) < 20


def test_gray_alpha_and_metadata(cpu, codec, photographs):
    alpha = np.random.default_rng(1).integers(0, 256, (30, 50), dtype=np.uint8)
    gray = photo(photographs, 50, 30)[..., 1]
    picture = Picture(np.ascontiguousarray(gray), alpha, b"profile", b"Exif\0\0camera", b"<x/>")
    encoded = codec.encode(picture, quality=60)
    for reader in (cpu, codec):
        decoded = reader.decode(encoded, out="picture")
        assert decoded.pixels.shape == (30, 50)
        assert np.array_equal(decoded.alpha, alpha)
        assert (decoded.icc, decoded.exif, decoded.xmp) == (picture.icc, picture.exif, picture.xmp)
    assert difference(codec.decode(encoded, out="picture").pixels, cpu.decode(encoded, out="picture").pixels) <= 1
    expected = cpu.encode(picture, quality=60).estimated_bits
    assert encoded.estimated_bits == pytest.approx(expected, rel=0.02)
    region = (7, 3, 30, 20)
    part = codec.decode(encoded, region=region, out="picture")
    assert np.array_equal(part.alpha, alpha[3:23, 7:37])
    assert difference(part.pixels, codec.decode(encoded, out="picture").pixels[3:23, 7:37]) <= 1


def test_large_images_in_parts(cpu, codec, engine, photographs, monkeypatch):
    """Two tiles (82 latents by 2), more than goes through the kernels at once; and regions of it."""
    image = photo(photographs, 1300, 20)
    data = cpu.encode(image, quality=40)
    whole = cpu.decode(data, out="numpy")
    assert difference(codec.decode(data, out="numpy"), whole) <= 1
    monkeypatch.setattr(gpu_batch, "GROUP_POSITIONS", 64)
    assert difference(codec.decode(data, out="numpy"), whole) <= 1
    assert torch.equal(codec.latents(data), cpu.latents(data))
    written = codec.encode(image, quality=40)
    assert difference(cpu.decode(written), whole) < 30
    codec.verify(written)
    for region in ((1250, 3, 40, 9), (1000, 0, 100, 20), (0, 0, 1, 1)):
        x, y, width, height = region
        part = codec.decode(data, out="numpy", region=region)
        assert difference(part, whole[y : y + height, x : x + width]) <= 1


def test_mixed_files(cpu, codec, photographs):
    """Lossless tiles beside network tiles: latents, pixels, regions, tensors."""
    picture = photo(photographs, 2048, 40)
    picture[:, 1024:2048] = 0
    picture[::5, 1024:2048] = (255, 0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lossless, "worth_trying", lambda pixels, _: not pixels[1:5].any())
        data = cpu.encode(picture, quality=50)
        assert container.read(codec.encode(picture, quality=50)).lossless == (False, True)
    assert container.read(data).lossless == (False, True)
    assert torch.equal(codec.latents(data), cpu.latents(data))
    codec.verify(data)
    whole = cpu.decode(data, out="numpy")
    assert difference(codec.decode(data, out="numpy"), whole) <= 1
    region = (1000, 3, 60, 30)
    assert difference(codec.decode(data, out="numpy", region=region), whole[3:33, 1000:1060]) <= 1
    files = [data, cpu.encode(picture, lossless=True), data]
    decoded = codec.decode_tensor(files)
    decoded.check()
    for found, wanted in zip(decoded.pixels.permute(0, 2, 3, 1).cpu().numpy(), (whole, picture, whole), strict=True):
        assert difference(found, wanted) <= 1


# ---- one copy in, one wait, launches that can be repeated


def test_shapes_are_remembered(cpu, codec, engine, photographs, monkeypatch):
    """The second batch of a shape is captured, later ones are replayed; and what is remembered is bounded."""
    captured = []
    graph = engine.target.graph
    monkeypatch.setattr(engine.target, "graph", lambda launch: captured.append(launch) or graph(launch))
    files = [
        cpu.encode(photo(photographs, 40, 30, left), quality=q) for left, q in ((0, 50), (9, 52), (30, 48), (3, 51))
    ]
    for data in files:
        assert difference(codec.decode(data), cpu.decode(data)) <= 1
    assert len(engine._remembered) == len(captured) == 1
    monkeypatch.setattr(gpu_batch, "GRAPH_POSITIONS", 8)
    for data in files[:3]:
        assert difference(codec.decode_batch([data, data])[1], cpu.decode(data)) <= 1
    assert (len(engine._remembered), len(captured)) == (2, 1), "too large for a graph"
    monkeypatch.setattr(gpu, "REMEMBERED_SHAPES", 2)
    for width in (16, 32, 48):
        data = cpu.encode(photo(photographs, width, 16))
        assert difference(codec.decode(data), cpu.decode(data)) <= 1
    assert len(engine._remembered) == 2
    monkeypatch.setattr(gpu, "REMEMBERED_POSITIONS", 3)
    codec.decode(data)
    assert len(engine._remembered) == 1


class HostReads(TorchDispatchMode):
    """Collects what reads a tensor's values on the host: on a GPU each would wait.

    What stands for a kernel may read them: Triton's interpreter, and references. And `_Entropy.send` fills memory that
    is the host's.
    """

    READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal", "unique", "_unique2")
    METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__")

    def __init__(self, patch: pytest.MonkeyPatch):
        super().__init__()
        self.found: list[str] = []
        self._watching = False
        for name in self.METHODS:
            patch.setattr(torch.Tensor, name, self._watched(name, getattr(torch.Tensor, name)))

    def _note(self, name: str) -> None:
        frame = sys._getframe()
        while frame is not None:
            code = frame.f_code
            if "triton/runtime" in code.co_filename or code.co_name.endswith("_reference"):
                return
            if code is gpu_batch.EntropyDecoder.send.__code__:
                return
            frame = frame.f_back
        self.found.append(name)

    def _watched(self, name, method):
        def watched(tensor, *arguments, **options):
            if self._watching:
                self._note(name)
            return method(tensor, *arguments, **options)

        return watched

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function._schema.name.removeprefix("aten::") in self.READS:
            self._note(function._schema.name)
        return function(*arguments, **(options or {}))

    def __enter__(self):
        self._watching = True
        return super().__enter__()

    def __exit__(self, *error):
        self._watching = False
        return super().__exit__(*error)


@contextmanager
def watched(monkeypatch) -> Iterator[tuple[list[str], list[int]]]:
    """Host reads of tensors, and waits."""
    waits = []
    wait = Fetch.wait
    monkeypatch.setattr(Fetch, "wait", lambda self: waits.append(1) or wait(self))
    with HostReads(monkeypatch) as reads:
        yield reads.found, waits


def test_a_profile_shows_the_stages(codec, photographs):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        codec.decode(codec.encode(photo(photographs, 40, 30)))
    names = {event.key for event in profile.key_averages()}
    assert names >= {"analysis", "hyper", "parameters", "rans", "synthesis", "copies"}


@pytest.mark.parametrize("parts", [False, True])
def test_decoding_waits_once(parts, cpu, codec, engine, photographs, monkeypatch):
    files = [cpu.encode(photo(photographs, 40, 30, left), quality=50) for left in (0, 9)]
    if parts:
        monkeypatch.setattr(gpu_batch, "GROUP_POSITIONS", 2)
    with watched(monkeypatch) as (reads, waits):
        decoded = codec.decode_tensor(files)
        assert (reads, waits) == ([], [])
        decoded.check()
    assert waits == [1]
    with watched(monkeypatch) as (reads, waits):
        codec.decode_batch(files, out="picture")
    assert waits == [1]


def test_another_wait_would_be_seen(cpu, codec, engine, photographs, monkeypatch):
    data = cpu.encode(photo(photographs, 40, 30), quality=50)
    launch = gpu_batch.EntropyDecoder.launch

    def careless(self):
        launch(self)
        if self._gain.max() > 1e9:
            raise AssertionError

    monkeypatch.setattr(gpu_batch.EntropyDecoder, "launch", careless)
    with watched(monkeypatch) as (reads, _):
        codec.decode_tensor([data])
    assert reads


@pytest.mark.gpu
def test_cuda_sees_no_other_wait(photographs):
    """PyTorch's own watch, over plain launches, capture's successors and replays."""
    codec = Codec.load("swift", "cuda")
    files = [codec.encode(photo(photographs, 300, 200, left), quality=50) for left in range(4)]
    for data in files[:2]:  # compiles, then captures
        codec.decode_tensor([data]).check()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for data in files:
            codec.decode_tensor([data]).check()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_thread_captures_only_what_it_has_run(cpu, codec, engine, photographs, monkeypatch):
    """cuDNN makes its handle and its plans in each thread's first run, which a capture does not survive."""
    captured, graph = [], engine.target.graph
    monkeypatch.setattr(engine.target, "graph", lambda launch: captured.append(threading.get_ident()) or graph(launch))
    data = cpu.encode(photo(photographs, 40, 30), quality=50)
    codec.decode(data)
    for wanted in (0, 1):
        with ThreadPoolExecutor(1) as pool:  # a thread that is new
            for _ in range(1 + wanted):
                pool.submit(codec.decode, data).result()
        assert len(captured) == wanted
    codec.decode(data)  # replays what the other thread has captured
    assert len(captured) == 1


def test_files_of_about_a_size_share_a_shape(cpu, photographs):
    """Photographs of 512 x 512 at one quality: their numbers of streams and words differ, few of their shapes do."""
    shapes, streams = set(), set()
    for image in photographs.values():
        for turned in (image, image[::-1], image[:, ::-1], image.transpose(1, 0, 2)):
            for part in (turned[:256, :256], turned[100:356, 30:286]):
                file = container.read(cpu.encode(part, quality=75, preset="latency"))
                payloads = [file.tile(number).payload for number in file.network_tiles]
                plan = DecodePlan(payloads, padded=True)
                shapes.add((shape_of(plan), gpu_batch.capacity_for(plan)))
                streams.add((DecodePlan(payloads).stream_count, plan.size))
    assert len(streams) > 12
    assert len(shapes) <= 6


@pytest.mark.gpu
def test_threads_share_a_codec(photographs):
    cpu, codec = Codec.load("swift", "cpu"), Codec.load("swift", "cuda")
    images = [photo(photographs, 100 + 16 * (n % 3), 80, n) for n in range(24)]
    files = [cpu.encode(image, quality=40 + n) for n, image in enumerate(images)]
    expected = [cpu.decode(data, out="numpy") for data in files]
    barrier = threading.Barrier(4)

    def work(k):
        barrier.wait()
        with torch.cuda.stream(torch.cuda.Stream()):
            for n in range(k, 24, 4):
                assert difference(codec.decode(files[n], out="numpy"), expected[n]) <= 1
                again = codec.encode(images[n], quality=40 + n)
                assert torch.equal(codec.latents(again), cpu.latents(again))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


# ---- pixels that stay on the device


def test_decode_tensor(cpu, codec, photographs):
    files = [cpu.encode(photo(photographs, 40, 30, left), quality=50) for left in (0, 9)]
    expected = np.stack([cpu.decode(data, out="numpy") for data in files])
    decoded = codec.decode_tensor(files)
    decoded.check()
    assert (decoded.pixels.shape, decoded.pixels.device.type) == ((2, 3, 30, 40), codec.device.type)
    assert difference(decoded.pixels.permute(0, 2, 3, 1).cpu(), expected) <= 1
    assert torch.equal(torch.from_dlpack(decoded.pixels), decoded.pixels)
    for out in (
        torch.zeros(2, 3, 30, 40, dtype=torch.uint8, device=codec.device),
        torch.zeros(5, 60, 50, 3, dtype=torch.uint8, device=codec.device)[1:5:2, 10:40, 5:45].permute(0, 3, 1, 2),
    ):
        assert codec.decode_tensor(files, out=out).pixels is out
        assert difference(out.permute(0, 2, 3, 1).cpu(), expected) <= 1
    part = codec.decode_tensor(files, region=(3, 5, 20, 10))
    part.check()
    assert difference(part.pixels.permute(0, 2, 3, 1).cpu(), expected[:, 5:15, 3:23]) <= 1


def test_decode_tensor_of_a_cpu_codec(cpu, photographs):
    files = [cpu.encode(photo(photographs, 40, 30, left), quality=50) for left in (0, 9)]
    decoded = cpu.decode_tensor(files)
    decoded.check()
    assert difference(decoded.pixels[1].permute(1, 2, 0), cpu.decode(files[1])) == 0


def test_decode_tensor_is_checked(cpu, codec, photographs):
    files = [cpu.encode(photo(photographs, side, 30), quality=50) for side in (30, 40)]
    with pytest.raises(ValueError, match="one size"):
        codec.decode_tensor(files)
    with pytest.raises(ValueError, match="one size"):
        codec.decode_tensor([])
    for out in (torch.zeros(1, 3, 30, 31, dtype=torch.uint8), torch.zeros(1, 3, 30, 30)):
        with pytest.raises(ValueError, match="out must be uint8"):
            codec.decode_tensor(files[:1], out=out.to(codec.device))


# ---- what goes wrong


def test_damage_is_told_by_tile_and_leaves_no_trace(cpu, codec, photographs):
    image = photo(photographs, 1300, 16)
    data = cpu.encode(image, quality=50)
    for number in (0, 1):
        bad = damaged(data, number)
        with pytest.raises(CorruptStreamError, match=f"tile {number} is damaged") as caught:
            codec.decode(bad)
        assert caught.value.tile == number
        with pytest.raises(CorruptStreamError, match=f"tile {number} is damaged"):
            codec.verify(bad)
        with pytest.raises(CorruptStreamError, match=f"tile {number} is damaged"):
            codec.latents(bad)
        decoded = codec.decode_tensor([bad])
        with pytest.raises(CorruptStreamError, match=f"tile {number} is damaged"):
            decoded.check()
        assert difference(codec.decode(data), cpu.decode(data)) <= 1
    cut = damaged(data, 1, lambda payload: payload[:3])
    with pytest.raises(CorruptStreamError, match="tile 1"):
        codec.decode(cut)


def test_one_bad_file_of_a_batch(cpu, codec, photographs):
    files = [cpu.encode(photo(photographs, 40, 30, left), quality=50) for left in (0, 9, 20)]
    with pytest.raises(CorruptStreamError, match="tile 0 is damaged"):
        codec.decode_batch([files[0], damaged(files[1], 0), files[2]])
    for data, decoded in zip(files, codec.decode_batch(files), strict=True):
        assert difference(decoded, cpu.decode(data)) <= 1


def test_latents_that_cannot_be_coded(codec, engine, photographs, monkeypatch):
    analysis = engine.transforms.analysis
    for value, error, text in ((float("nan"), ImageError, "finite"), (1e6, Exception, "16 bits")):
        monkeypatch.setattr(engine.transforms, "analysis", lambda *a, value=value: analysis(*a).fill_(value))
        with pytest.raises(error, match=text):
            codec.encode(photo(photographs, 20, 20))


# ---- a GPU that fails


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(
            "CUDA error: an illegal memory access was encountered\nSearch for `cudaErrorIllegal...'"
        ),
        RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    ],
)
def test_a_failed_gpu_is_a_typed_error(error, cpu, codec, engine, photographs, monkeypatch):
    """And nobody waits for what it holds: the next call finds the engine free."""
    image = photo(photographs, 40, 30)
    data = cpu.encode(image, quality=50)

    def fail(*arguments, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(parameters, "decode_parameters", fail)
        patch.setattr(parameters, "encode_parameters", fail)
        for call in (codec.decode, codec.verify, codec.latents, lambda _: codec.encode(image)):
            with pytest.raises(UnavailableError, match=r"the GPU failed.*illegal memory access was encountered$"):
                call(data)
    decoded = codec.decode_tensor([data])
    with monkeypatch.context() as patch:
        patch.setattr(Fetch, "wait", fail)
        with pytest.raises(UnavailableError, match="illegal memory access"):
            decoded.check()
    assert difference(codec.decode(data), cpu.decode(data)) <= 1


def test_memory_that_runs_out_is_not_a_failed_gpu(cpu, codec, engine, photographs, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(parameters, "decode_parameters", fail)
    with pytest.raises(torch.OutOfMemoryError):
        codec.decode(cpu.encode(photo(photographs, 40, 30), quality=50))


class Capturing:
    """Stands for torch.cuda.CUDAGraph: notes what is called, and fails where it is told to."""

    calls: list
    fails = ""

    def __init__(self):
        Capturing.calls = []

    def _note(self, name: str) -> None:
        self.calls.append(name)
        if name == self.fails:
            raise RuntimeError(f"CUDA error: {name} failed")

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local", "other threads allocate meanwhile"
        self._note("begin")

    def capture_end(self) -> None:
        self._note("end")

    def replay(self) -> None:
        self._note("replay")


@pytest.fixture
def capturing(engine, monkeypatch):
    """An engine that believes that it has a GPU, and its graphs."""
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Capturing)
    monkeypatch.setattr(Capturing, "fails", "")
    monkeypatch.setattr(engine, "device", torch.device("cuda"))
    return Capturing


def test_a_capture_waits_for_nothing(engine, capturing, monkeypatch):
    for name in ("synchronize", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, None)
    replay = engine.capture(lambda: capturing.calls.append("launch"))
    assert capturing.calls == ["begin", "launch", "end"]
    replay()
    assert capturing.calls[-1] == "replay"


@pytest.mark.parametrize("fails", ["begin", "launch", "end"])
def test_a_capture_that_fails_is_ended_and_done_without(fails, engine, capturing, monkeypatch):
    monkeypatch.setattr(capturing, "fails", fails)

    def launch():
        capturing._note(capturing, "launch")

    with pytest.warns(RuntimeWarning, match=f"without a CUDA graph.*{fails} failed"):
        found = engine.capture(launch)
    assert found is launch
    assert capturing.calls == (["begin"] if fails == "begin" else ["begin", "launch", "end"])


def test_other_defaults_of_pytorch(cpu, codec, photographs):
    """Files and pixels are the same under another default device and dtype (test_torch_defaults.py has the CPU's)."""
    image = photo(photographs, 40, 30)
    data, levels = codec.encode(image), codec.decode(cpu.encode(image), out="numpy")
    for device, dtype in (("meta", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.float64)):
        try:
            torch.set_default_device(device)
            torch.set_default_dtype(dtype)
            other = Codec.load("swift", "cuda")
            for used in (codec, other):
                assert used.encode(image) == data
                assert difference(used.decode(cpu.encode(image), out="numpy"), levels) == 0
                used.verify(data)
                assert difference(used.decode_tensor([data]).pixels[0].permute(1, 2, 0).cpu(), levels) == 0
        finally:
            torch.set_default_device(None)
            torch.set_default_dtype(torch.float32)
