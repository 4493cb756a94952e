"""The codec's GPU benchmark without a GPU: in simulation, where all runs but CUDA's events and the driver's meters.

Nothing here looks at times.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_bench_gpu import bench, machine  # noqa: F401 (fixtures: the package, and the host shim as a GPU)

from fastcodec.codec import Codec
from fastcodec.kernels.triton import hyper_synthesis, parameters, pixels, pointwise
from fastcodec.kernels.triton.common import INTERPRETED
from fastcodec.models.swift import release as released
from fastcodec.models.swift.network import SwiftConfig

pytestmark = pytest.mark.usefixtures("network_tiles")

GROUPS = released.load("swift").config.group_channels

# What a decode of one image launches, in order.
LAUNCHES = [
    "rANS z",
    "hyper-synthesis: head and up1",
    "hyper-synthesis: middle and up2",
    "hyper-synthesis: tail",
    *(["anchor parameters", "rANS anchors", "context parameters", "rANS non-anchors"] * len(GROUPS)),
    "finish",
    "first layer of a block",
    "residual block, 256 channels",
    "upsample",
    "residual block, 128 channels, and into the next",
    "residual block, 128 channels, and into the next",
    "residual block, 128 channels",
    "convolution 3x3 (PyTorch)",
    "to pixels",
]


@pytest.fixture(autouse=True)
def one_thread():
    """Images are tiny here: on a busy machine threads would do little but wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def subject(bench):  # noqa: F811
    import bench.gpu_codec  # in the package that the fixture has found

    return bench.gpu_codec


@pytest.fixture
def sizes(subject):
    return subject.Sizes(
        images=((48, 32),),
        batches=(2,),
        studied=(1,),
        energy_batch=2,
        warm_ups=1,
        repeats=1,
        rate_seconds=0,
        energy_seconds=0,
    )


@pytest.fixture
def cpu() -> Codec:
    return Codec.load("swift", "cpu")


@pytest.fixture
def codec(machine, monkeypatch) -> Codec:  # noqa: F811
    """In simulation; Triton's kernels are their references."""
    if not INTERPRETED:
        pytest.skip("Triton's interpreter is off: there is a GPU")
    for module in (hyper_synthesis, parameters, pixels, pointwise):
        monkeypatch.setattr(module, "on_gpu", lambda tensor: False)
    with machine.kernels():
        return Codec.load("swift", "sim")


@pytest.fixture
def cells() -> list[np.ndarray]:
    """Photographs of the size that the benchmark has them in."""
    random = np.random.default_rng(1)
    return [random.integers(0, 256, (512, 768, 3), dtype=np.uint8) for _ in range(3)]


def test_every_part_runs(subject, machine, codec, sizes, monkeypatch, capsys):  # noqa: F811
    launches, saved = subject.launches, []
    monkeypatch.setattr(subject, "quality_near", lambda *arguments: 50)  # it has a test of its own

    def interpreted(*arguments):
        with monkeypatch.context() as patch:
            for module in (hyper_synthesis, parameters, pixels, pointwise):
                patch.setattr(module, "on_gpu", lambda tensor: True)
            return launches(*arguments)

    monkeypatch.setattr(subject, "launches", interpreted)
    found = subject.run(machine, codec, sizes, save=lambda part: saved.append(json.dumps(part)))
    assert json.loads(saved[-1]) == json.loads(json.dumps(found))
    assert len(saved) == 8  # after each part
    assert found["failures"] == found["skipped"] == []
    assert found["images"] in ("Kodak", "scikit-image")
    assert set(found["first_calls_s"]) == {f"{way}, batch {n}" for way in ("decode", "encode") for n in (1, 2)}

    [row] = found["decode"]
    assert row["captured"]
    assert row["latency_preset_bytes_more"] >= 0
    for preset in subject.PRESETS:
        assert row[preset]["bpp"] == 8 * row[preset]["bytes"] / (48 * 32)
        for way in ("graph", "launches"):
            assert {row[preset][way][clock]["runs"] for clock in ("wall", "gpu", "host")} == {1}
        stages = row[preset]["launches"]["stages_us"]
        assert list(stages) == [*subject.STAGES, "other"]
        assert all(microseconds > 0 for microseconds in stages.values())
        assert sum(stages.values()) == pytest.approx(1e3 * row[preset]["launches"]["gpu"]["median_ms"])
        assert found["encode"][0][preset]["bytes"] == pytest.approx(row[preset]["bytes"], rel=0.1)

    [row] = found["decode_rates"]
    for preset in subject.PRESETS:
        for way in ("on_device", "brought_home"):
            assert row[preset][way]["mp_s"] == pytest.approx(row[preset][way]["images_s"] * 48 * 32 / 1e6)
        assert row[preset]["host_us_an_image"] > row[preset]["parsing_and_crc_us_an_image"] > 0
    assert found["encode_rates"][0]["from_device"]["images_s"] > 0

    [row] = found["baselines"]
    assert 0.1 < row["host_coder"]["coded"] < 1
    assert [row["network"][name]["equal"] for name in ("float32", "tf32", "float16")] == [True, True, False]
    for name in ("float32", "tf32", "float16"):
        for stage, microseconds in row["network"]["fused_us"].items():
            times = row["network"][name]["us"][stage] / microseconds
            assert row["network"][name]["times_fused"][stage] == pytest.approx(times)
    assert row["synthesis"]["furthest"] <= 1

    [row] = found["launches"]
    assert [item["launch"] for item in row["launches"]] == LAUNCHES
    assert row["launches_us"] == pytest.approx(sum(item["us"] for item in row["launches"]))
    assert all(item["gb_s"] > 0 for item in row["launches"] if item["launch"] != "finish")
    assert all(item["gsymbols"] > 0 for item in row["launches"] if item["launch"].startswith("rANS"))
    check_counts(row["launches"])

    assert found["energy"]["mp_s"] > 0
    assert [goal["reached"] for goal in found["goals"][:2]] == [None, None]  # no images of these sizes
    assert found["goals"][2]["measured"] == min(
        found["baselines"][0]["network"][name]["times_fused"]["context parameters"] for name in ("float32", "tf32")
    )
    text = capsys.readouterr().out
    for title in ("Decode 48x32", "Stages of 48x32", "encode 48x32", "Batches of 48x32", "Launches of decoding"):
        assert title in text
    assert "coder on the host" in text
    assert "goal: context parameters" in text


def check_counts(launches: list[dict]) -> None:
    """Bytes and operations of a 48x32 image, 3 x 2 latents and one hyper latent, by the layers of `swift.py`."""
    c = SwiftConfig()
    m, f, h, z, n = c.latents, c.hyper_features, c.hidden, c.hyper_latents, 128
    rows = {item["launch"]: item for item in launches}
    table, bias = 8 * 4, 4  # bytes of the tile's row in the table, of an int32
    for name, multiplications in {
        "hyper-synthesis: head and up1": 9 * z * n + 4 * n * n,
        "hyper-synthesis: middle and up2": 4 * (9 * n * n + 4 * n * n),
        "hyper-synthesis: tail": 6 * 9 * n * f,
        "first layer of a block": 6 * m * m,
        "residual block, 256 channels": 6 * 4 * m * m,
        "upsample": 24 * (m * c.features + c.features**2),
        "residual block, 128 channels, and into the next": 24 * 5 * c.features**2,
        "residual block, 128 channels": 24 * 4 * c.features**2,
        "convolution 3x3 (PyTorch)": 24 * 9 * c.features * 192,
    }.items():
        assert rows[name]["operations"] == 2 * multiplications, name
    assert rows["to pixels"]["bytes"] == 24 * 192 * 4 + 192 * 4 + 48 * 32 * 3
    assert rows["rANS z"]["symbols"] == z
    assert rows["rANS z"]["bytes"] == z * (1 + 2)  # an index, a symbol
    of_groups = [item for item in launches if item["launch"] in LAUNCHES[4:8]]
    for number, channels in enumerate(GROUPS):
        anchors, rans_anchors, others, rans_others = of_groups[4 * number : 4 * number + 4]
        before, own = channels.start, channels.stop - channels.start
        first = f * h + h * h + 2 * h * own
        phi = c.context_features * h  # what a context adds to the first layer of g_ep
        channel_context = before * c.context_features + phi if before else 0
        context = (12 * own + before) * c.context_features + phi
        assert anchors["operations"] == 2 * 3 * (first + channel_context)
        assert others["operations"] == 2 * 3 * (first + context)
        outputs = 3 * own * (2 + 1)  # means, indexes
        epilogues = 2 * bias * (2 * h + 2 * own)  # a bias and a shift for each output
        more = 2 * bias * c.context_features + bias * channels.stop  # the context's epilogue, and its shifts
        read = 3 * 4 * before  # of earlier groups
        assert anchors["bytes"] == table + 3 * f + first + epilogues + outputs + bool(before) * (
            channel_context + more + read
        )
        assert others["bytes"] == table + 3 * f + first + epilogues + outputs + context + more + read + 3 * 4 * own
        # An index, a symbol, a mean, a value, a latent (float32 here).
        assert rans_anchors["bytes"] == 3 * own * (1 + 2 + 2 + 4 + 4)
        last = channels is GROUPS[-1]
        assert rans_others["bytes"] == 3 * own * (1 + 2 + 2 + 4 + 4 * (not last)), "the last values nobody needs"


def test_a_wrong_result_is_a_failure(subject, machine, codec, cpu, sizes, cells, monkeypatch):  # noqa: F811
    monkeypatch.setattr(subject, "quality_near", lambda *arguments: 30)
    monkeypatch.setattr(subject, "_by_graph", lambda machine, codec, files, out, sizes: out.fill_(7))
    picture = subject.compose(cells, 32, 16)
    with pytest.raises(subject.MismatchError, match=r"decoded by a graph, size: \d+ levels from the CPU's"):
        subject.decode_latency(machine, codec, cpu, sizes, picture)
    latents = codec.latents
    monkeypatch.setattr(codec, "latents", lambda data: latents(data) + 1)
    with pytest.raises(subject.MismatchError, match="latents of the CPU's file, size are not equal"):
        subject.decode_latency(machine, codec, cpu, sizes, picture)


def test_what_fails_leaves_the_rest(subject, machine, sizes, monkeypatch, capsys):  # noqa: F811
    def broken(*_):
        raise RuntimeError("an illegal memory access was encountered")

    names = ("decode_latency", "decode_rates", "HostCoder", "launches", "encode_latency", "encode_rates", "energy")
    for name in ("_first_calls", *names):
        monkeypatch.setattr(subject, name, broken)
    monkeypatch.setattr(machine, "copy_bandwidth", broken)
    written = subject.Batch([], 50, dict.fromkeys(subject.PRESETS, ()))
    monkeypatch.setattr(subject, "written_batch", lambda *arguments: written)
    monkeypatch.setattr(subject.Batch, "of", lambda batch, count: batch)
    found = subject.run(machine, SimpleNamespace(), sizes)
    assert found["failures"] == [
        "first calls",
        "copy bandwidth",
        "decode, 48x32",
        "decode_rates, 2",
        "baselines, 1",
        "launches, 1",
        "encode, 48x32",
        "encode_rates, 2",
        "energy",
    ]
    assert all("illegal memory access" in found[name][0]["failed"] for name in ("decode", "launches", "baselines"))
    assert {goal["measured"] for goal in found["goals"]} == {None}
    text = capsys.readouterr().out
    assert "launches, 1 failed: an illegal memory access" in text
    assert "not measured" in text
    found = subject.run(machine, SimpleNamespace(), sizes, seconds=0)
    assert found["skipped"] == [*(name for name in found["skipped"] if "," in name), "energy"]
    assert len(found["skipped"]) == 7
    assert found["energy"] == {"skipped": "no time was left"}
    assert "left out for want of time: decode, 48x32" in capsys.readouterr().out


def test_images(subject, cells, monkeypatch):
    """Photographs beside each other, and what stands in for them."""
    big = subject.compose(cells, 1600, 600).pixels
    assert big.shape == (600, 1600, 3)
    assert np.array_equal(big[:512, 768:1536], cells[1])
    assert np.array_equal(big[512:, :768], cells[0][:88, ::-1])  # a second round is mirrored
    pictures = [subject.compose(cells, 768, 512, number).pixels for number in range(12)]
    assert len({picture.tobytes() for picture in pictures}) == 12
    monkeypatch.setenv("FASTCODEC_KODAK", "/nowhere")
    monkeypatch.setitem(sys.modules, "skimage", None)
    source, photos = subject.photographs()
    assert source == "synthetic"
    assert {photo.shape for photo in photos} == {(512, 768, 3)}
    spectrum = np.abs(np.fft.rfft2(photos[0].mean(2)))[1:250, 0] ** 2
    slope = np.polyfit(np.log(np.arange(1, 250)), np.log(spectrum), 1)[0]
    assert -3 < slope < -1.5  # of photographs it is about -2


def test_the_quality_is_near_the_rate(subject, cells):
    class Coder:
        def encode_batch(self, pictures, quality):
            return [SimpleNamespace(data=bytes(quality * 100)) for _ in pictures]

    pictures = [subject.compose(cells, 80, 100) for _ in range(2)]
    assert subject.quality_near(Coder(), pictures, 6.24) == 62
    assert subject.quality_near(Coder(), pictures, 6.26) == 63
    assert (subject.quality_near(Coder(), pictures, 0), subject.quality_near(Coder(), pictures, 99)) == (1, 100)


def test_no_time_of_the_host_is_in_the_gpus(subject, machine, monkeypatch):  # noqa: F811
    """The GPU is kept busy from before the first mark until longer than the host takes."""
    order = []
    monkeypatch.setattr(machine, "synchronize", lambda: order.append("synchronize"))
    monkeypatch.setattr(machine, "hold", lambda cycles: order.append(cycles))
    monkeypatch.setattr(machine, "mark", lambda: order.append("mark") or len(order))
    [seconds] = subject.gpu_times(machine, lambda: order.append("call"), 2e-3, 1)
    assert order == ["synchronize", order[1], "mark", "call", "mark", "synchronize"]
    assert order[1] / subject.CLOCK == pytest.approx(2 * 2e-3, rel=0.1)
    assert seconds == 2  # marks: from the third to the fifth


def test_launches_without_a_graph(subject, machine, codec, cpu, cells, monkeypatch):  # noqa: F811
    engine = codec._engine(codec.model)
    captured = []
    monkeypatch.setattr(engine.where, "graph", lambda launch: captured.append(launch) or launch)
    data = cpu.encode(subject.compose(cells, 16, 16))
    with machine.kernels():
        codec.decode_tensor([data]).check()
        with subject.by_launches(machine, codec):
            for _ in range(3):
                codec.decode_tensor([data]).check()
        assert captured == []
        codec.decode_tensor([data]).check()
    assert len(captured) == 1


def test_roofs(subject, machine):  # noqa: F811
    """An H100 at its boost clock has the tensor throughput that NVIDIA states for it."""
    machine.multiprocessors, machine.capability = 132, 90
    assert subject.tensor_peak(machine, "fp16", 1830) == pytest.approx(989.4e12, rel=1e-3)
    assert subject.tensor_peak(machine, "int8", 1830) == pytest.approx(1978.9e12, rel=1e-3)
    assert subject.tensor_peak(machine, "fp32", 1830) is None
    assert subject.tensor_peak(machine, "int8", None) is None
    work = subject.Work("a product", 2_000_000, 10**9, "int8")
    row = subject._figures(machine, work, 10e-6, 2e12, 1830)
    assert row["gb_s"] == pytest.approx(200)
    assert row["of_copy"] == pytest.approx(0.1)
    assert row["tops"] == pytest.approx(200)
    assert (row["bound_by"], row["floor_us"]) == ("tensor cores", pytest.approx(1.01, rel=1e-2))
    assert subject._figures(machine, work, 10e-6, 1e12, 1830)["bound_by"] == "memory"
    assert "floor_us" not in subject._figures(machine, work, 10e-6, None, None)
    machine.capability = 86
    assert subject.tensor_peak(machine, "int8", 1830) is None


def test_goals(subject):
    rates = [
        {"batch": count, **{preset: {"on_device": {"images_s": speed}} for preset in subject.PRESETS}}
        for count, speed in ((1, 9), (64, 1600))
    ]
    context = {"times_fused": {"context parameters": 4.0}, "equal": True}
    found = {
        "decode": [{"image": "768x512", "latency": {"graph": {"wall": {"median_ms": 1.2}}}}, {"image": "1920x1080"}],
        "decode_rates": rates,
        "baselines": [{"batch": 1, "network": {"float32": context, "tf32": {**context, "equal": False}}}],
    }
    assert [(goal["measured"], goal["reached"]) for goal in subject.goals(found)] == [
        (1.2, False),
        (None, None),
        (4.0, True),
        (1600, True),
    ]


def test_long_series_end(subject, monkeypatch):
    assert len(list(subject.rounds(20))) == 20
    monkeypatch.setattr(subject, "MOST_SECONDS", -1)
    assert len(list(subject.rounds(20))) == subject.LEAST_RUNS
    assert len(list(subject.rounds(2))) == 2


# ---- the process that measures it


def test_its_process(bench, monkeypatch):  # noqa: F811
    """What it writes is read, also if it ends badly or must be stopped."""
    write = 'import sys, time; open(sys.argv[1], \'w\').write(\'{"images": "Kodak", "failures": ["energy"]}\'); '
    monkeypatch.setattr(bench.gpu, "CODEC", ("-c", write))
    assert bench.gpu.codec() == {"images": "Kodak", "failures": ["energy"]}
    monkeypatch.setattr(bench.gpu, "CODEC", ("-c", write + "sys.exit(3)"))
    assert bench.gpu.codec() == {"images": "Kodak", "failures": ["energy", "it ended with status 3"]}
    monkeypatch.setattr(bench.gpu, "CODEC", ("-c", "import time; time.sleep(100)"))
    monkeypatch.setattr(bench.gpu, "CODEC_SECONDS", 0.5)
    assert bench.gpu.codec() == {"failures": ["it was stopped after 0 s"]}


def test_it_is_a_part_of_the_gpu_benchmark(bench, machine, monkeypatch):  # noqa: F811
    monkeypatch.setattr(bench.gpu, "Machine", lambda: machine)
    monkeypatch.setattr(bench.gpu, "instructions", lambda machine: {})
    monkeypatch.setattr(bench.gpu, "codec", lambda: {"images": "Kodak", "failures": ["energy"]})
    found = bench.gpu.run(seconds=0)
    assert found["codec"]["images"] == "Kodak"
    assert found["failures"] == ["codec: energy"]


def test_without_a_gpu_it_says_so(subject, capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert subject.main([str(tmp_path / "codec.json")]) == 1
    assert "the coder finds no GPU to run on" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_what_is_found_is_written(subject, tmp_path, monkeypatch):
    monkeypatch.setattr(subject, "run", lambda save: save({}) or save({"images": "Kodak", "mp_s": 2 / 3}))
    assert subject.main([str(tmp_path / "codec.json")]) == 0
    [path] = tmp_path.iterdir()
    assert json.loads(path.read_text("utf-8")) == {"images": "Kodak", "mp_s": 0.66667}
