"""What is measured on a GPU, without one: every part on the CPU, and what happens to parts that fail, die or hang.

Nothing here looks at times.
"""

import contextlib
import json
import sys
import time

import numpy as np
import pytest
import torch

from bench import __main__ as program
from bench import common
from bench.gpu import _subject, _timing, baselines, codec, latency, measure, peers, rans
from fastcodec.codec import Codec
from fastcodec.errors import UnavailableError
from fastcodec.rans import encode

pytestmark = pytest.mark.usefixtures("network_tiles", "one_thread")


class CpuMachine(_timing.Machine):
    """The CPU as a GPU of three multiprocessors, whose kernels are one."""

    def __init__(self):
        self.device = torch.device("cpu")
        self.name, self.multiprocessors, self.capability = "CPU", 3, 90
        self.nvml = _timing.Nvml("none")

    def most_symbols(self):
        return 1 << 30

    def side_stream(self):
        return contextlib.nullcontext()

    def synchronize(self):
        pass

    def hold(self, seconds):
        pass

    def enclosed(self, call):
        return _timing.elapsed(call)

    def kernels(self, call):
        return {"fastcodec_rans_encode": _timing.elapsed(call)}

    def copy_bandwidth(self):
        return 1e9


@pytest.fixture
def machine():
    return CpuMachine()


# ---- the codec


@pytest.fixture
def it(machine, tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    cells = [random.integers(0, 256, (512, 768, 3), dtype=np.uint8) for _ in range(3)]
    monkeypatch.setattr(_subject, "photographs", lambda: ("Kodak", cells))
    monkeypatch.setattr(_subject, "nearest_quality", lambda *arguments: 50)  # it has a test of its own
    sizes = _subject.Sizes(
        images=((48, 32), (64, 32), (32, 64)),
        batches=(2, 1),
        studied=(1,),
        many=5,
        rounds=4,
        energy_batch=2,
        warm_ups=1,
        repeats=1,
        profiles=1,
        rate_seconds=0,
        energy_seconds=0,
    )
    folder = tmp_path / "files"
    folder.mkdir()
    return _subject.Subject(folder, machine, sizes=sizes)


def test_every_part_of_latency_runs(it, tmp_path, monkeypatch, capsys):
    path, saved = tmp_path / "latency.json", []
    save = measure.Found.save
    monkeypatch.setattr(measure.Found, "save", lambda found: save(found) or saved.append(path.read_text("utf-8")))
    parts = latency.parts(it.folder, it)
    assert measure.measure(measure.Found(path), parts, 1e6) == measure.FINISHED
    found = json.loads(path.read_text("utf-8"))
    assert (found["failures"], found["skipped"], found["running"]) == ({}, [], None)
    assert list(found["parts"]) == [part.name for part in parts]
    assert len({len(json.loads(text)["parts"]) for text in saved}) == len(parts) + 1  # after every figure
    many = found["parts"]["decode 5 files, latency"]
    assert (many["sizes"], many["later_rounds"]["runs"]) == (2, 2 * 5)
    for preset in _subject.PRESETS:
        row = found["parts"][f"decode 48x32, graph, {preset}"]
        assert {row[clock]["runs"] for clock in ("wall", "gpu", "host")} == {1}
        assert row["bpp"] == pytest.approx(8 * row["bytes"] / (48 * 32), rel=1e-4)
        stages = found["parts"][f"decode 48x32, stages, {preset}"]["stages_us"]
        assert list(stages) == ["analysis", "hyper", "parameters", "rans", "synthesis", "other", "total"]
        assert stages["synthesis"] > 0
        assert found["parts"][f"encode 48x32, {preset}"]["stages_us"]["analysis"] > 0
    row = found["parts"]["decode rate, batch 2"]
    assert row["on_device"]["mp_s"] == pytest.approx(row["on_device"]["images_s"] * 48 * 32 / 1e6, rel=1e-3)
    assert "decode 48x32, graph, latency: bytes" in capsys.readouterr().out
    # A process that follows runs nothing again, and finds the files.
    monkeypatch.setattr(it.cpu, "encode", None)
    assert measure.measure(measure.Found.load(path), parts, 1e6) == measure.FINISHED
    assert it.file((48, 32), "size")


def test_every_part_of_codec_runs(it, tmp_path):
    path = tmp_path / "codec.json"
    assert measure.measure(measure.Found(path), codec.parts(it.folder, it), 1e6) == measure.FINISHED
    found = json.loads(path.read_text("utf-8"))
    assert found["failures"] == {}
    row = found["parts"]["beside plain PyTorch, batch 1"]
    assert [row[name]["equal"] for name in ("float32", "tf32", "float16")] == [True, True, False]
    assert row["float16"]["times_ours"].keys() == set(baselines.NETWORK_STAGES)
    row = found["parts"]["launches, batch 1"]
    model = it.codec.model
    positions, layers = 3 * 2, model.entropy.layers  # latents of a 48x32 image, and one hyper latent
    products = {name: layer.weight.numel() for name, layer in layers.items()}
    entropy = sum(n * positions for name, n in products.items() if name.startswith("g_ep"))
    entropy += sum(n * positions / 2 for name, n in products.items() if name.startswith(("g_cm", "g_ch")))
    assert row["roofs"]["parameters"]["operations"] == 2 * entropy
    assert row["roofs"]["hyper"]["operations"] == 2 * (
        products["h_s.head"] + products["h_s.up1"] + 4 * (products["h_s.middle"] + products["h_s.up2"])
        + 16 * products["h_s.tail"]
    )  # fmt: skip
    assert found["parts"]["energy"]["mp_s"] > 0


def test_a_wrong_result_is_a_failure_and_time_ends(it, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "by_graph", lambda *arguments: {})  # pixels stay zero
    chosen = [part for part in latency.parts(it.folder, it) if part.name.startswith("decode 48x32, graph")]
    found = measure.Found(tmp_path / "latency.json")
    assert measure.measure(found, chosen, 1e6) == measure.FINISHED
    assert "levels from the CPU's pixels" in found.failures["decode 48x32, graph, size"]
    found = measure.Found(tmp_path / "latency.json")
    measure.measure(found, chosen, 0)
    assert found.skipped == [part.name for part in chosen]


def test_pictures():
    cells = [np.full((512, 768, 3), value, np.uint8) for value in (1, 2, 3)]
    cells[0][0, 0] = 9
    wide = _subject.compose(cells, 1920, 1080, 2).pixels
    assert [wide[0, 0, 0], wide[0, 768, 0], wide[512, 0, 0]] == [3, 1, 3]
    assert wide[0, 2 * 768 - 1, 0] == 9, "mirrored after one round"
    assert _subject.nearest_quality(lambda quality: quality / 100, 0.317) == 32
    noise = _subject.synthetic(0)
    assert (noise.shape, noise.dtype) == ((512, 768, 3), np.uint8)
    assert 20 < noise.std() < 80


def test_long_series_end(monkeypatch):
    assert len(list(_timing.rounds(20))) == 20
    monkeypatch.setattr(_timing, "MOST_SECONDS", -1)
    assert len(list(_timing.rounds(20))) == _timing.LEAST_RUNS
    assert len(list(_timing.rounds(2))) == 2


def test_the_gpu_is_held_while_the_host_enqueues(machine, monkeypatch):
    order = []
    monkeypatch.setattr(machine, "synchronize", lambda: order.append("synchronize"))
    monkeypatch.setattr(machine, "hold", order.append)
    monkeypatch.setattr(machine, "enclosed", lambda call: call() or 2)
    [seconds] = _timing.gpu_times(machine, lambda: order.append("call"), 2e-3, 1)
    assert order == ["synchronize", pytest.approx(2 * 2e-3, rel=0.1), "call"]
    assert seconds == 2


def test_roofs(machine):
    """An H100 at its boost clock has the tensor throughput that NVIDIA states for it."""
    machine.multiprocessors, machine.capability = 132, 90
    assert codec.tensor_peak(machine, "fp16", 1830) == pytest.approx(989.4e12, rel=1e-3)
    assert codec.tensor_peak(machine, "int8", 1830) == pytest.approx(1978.9e12, rel=1e-3)
    assert codec.tensor_peak(machine, "int8", None) is None
    machine.capability = 86
    assert codec.tensor_peak(machine, "int8", 1830) is None


# ---- the coder


@pytest.fixture
def small(machine):
    return rans.Setup(
        machine,
        rans.Sizes(
            symbols=3 * 64 * 96,
            checked_symbols=2 * 64 * 96,
            peer_symbols=3 * 64 * 64,
            repeats=2,
            lanes=(1, 32),
            streams=(1, 3),
            image=(4, 6),
        ),
        copy=1e9,
    )


def test_every_part_of_the_coder_runs(small, tmp_path):
    found = measure.Found(tmp_path / "rans.json")
    assert measure.measure(found, rans.parts(tmp_path, small), 1e6) == measure.FINISHED
    assert found.failures == {}
    names = {f"full GPU, {mix}" for mix in rans.MIXES}
    assert names <= {name.rpartition(", ")[0] for name in found.parts}
    for name, row in found.parts.items():
        if name.startswith("full GPU"):
            assert row["symbols"] == small.sizes.symbols
            for kernel, least in (("encode", 3), ("decode", 3), ("reconstruct", 13)):
                assert row[kernel]["gsymbols"] > 0
                assert row[kernel]["bytes_per_symbol"] > least
            assert all(speed > 0 for speed in row["calls"].values())
        if name.startswith("one image"):
            shapes = {(shape["lanes"], shape["streams"]): shape for shape in row["shapes"]}
            assert {(1, 1), (1, 3), (32, 1), (32, 3)} <= shapes.keys()
            assert shapes[32, 3]["bytes"] > shapes[1, 1]["bytes"]
        if name.startswith("mixtures"):
            assert row["encode_msymbols"] > 0 < row["decode_msymbols"]
    assert found.parts["full GPU, swift at quality 60, skip"]["coded"] == pytest.approx(0.643, abs=0.02)
    assert found.parts["full GPU, 1..48, dense"]["coded"] == 1
    assert found.parts["peers"]["fastcodec"]["decode_gsymbols"] > 0


def test_a_wrong_payload_is_a_failure(small, monkeypatch):
    calls = []

    def wrong(*arguments, **options):
        calls.append(arguments)
        return [data + b"\0" * (len(calls) == 1) for data in encode(*arguments, **options)]

    monkeypatch.setattr(rans, "encode", wrong)
    with pytest.raises(_timing.MismatchError, match="payloads"):
        rans.full_gpu(small, "8", True)


def test_peers_that_are_there(small, monkeypatch):
    """Each is measured, and one that fails fails alone."""

    def peer(machine, batch):
        return peers.Peer((lambda: None), (lambda: None), 1000, "zeros")

    def broken(machine, batch):
        raise RuntimeError("another version")

    monkeypatch.setattr(peers, "PEERS", {"good": peer, "broken": broken})
    found = rans.beside_peers(small)
    assert found["good"]["coded"] == "zeros"
    assert found["good"]["decode_ours_over_it"] > 0
    assert "another version" in found["broken"]["failed"]


# ---- the process that measures, and the one that watches it


def test_an_error_that_stays_ends_the_process(tmp_path):
    def broken():
        raise UnavailableError("the GPU failed")

    bodies = {"a": dict, "b": broken, "c": lambda: {"x": 1}}
    parts = [measure.Part(name, body, name) for name, body in bodies.items()]
    found = measure.Found(tmp_path / "latency.json")
    assert measure.measure(found, parts, 1e6) == measure.POISONED
    assert (list(found.parts), list(found.failures)) == (["a"], ["b"])
    assert measure.measure(measure.Found.load(found.path), parts, 1e6) == measure.FINISHED
    assert list(measure.Found.load(found.path).parts) == ["a", "c"]


WORKER = """
import json, os, sys, time
path, folder, end = sys.argv[1:]
found = json.load(open(path))
for name in ("good", "dies", "hangs", "last"):
    if name in found["parts"] or name in found["failures"]:
        continue
    found["running"] = name
    json.dump(found, open(path + ".new", "w")); os.replace(path + ".new", path)
    if name == "dies":
        os._exit(9)
    if name == "hangs":
        time.sleep(100)
    found["parts"][name] = {}
    found["running"] = None
    json.dump(found, open(path + ".new", "w")); os.replace(path + ".new", path)
"""


def test_parts_that_die_or_hang_leave_the_rest(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(measure, "MOST_PART_SECONDS", 1.0)
    path = tmp_path / "latency.json"
    assert measure.watch(path, 60, [sys.executable, "-c", WORKER]) == 1
    found = measure.Found.load(path)
    assert list(found.parts) == ["good", "last"]
    assert found.failures == {"dies": "its process ended with status 9", "hangs": "it took too long"}
    assert "failed: dies" in capsys.readouterr().out


def test_a_process_that_cannot_begin(tmp_path):
    start = time.monotonic()
    path = tmp_path / "latency.json"
    assert measure.watch(path, 60, [sys.executable, "-c", "import sys; sys.exit(1)"]) == 1
    assert "status 1 before its first part" in str(measure.Found.load(path).failures)
    assert time.monotonic() - start < 30


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    path = tmp_path / "latency.json"
    assert measure.main(["latency", "--measure", str(path), str(tmp_path), "0"]) == measure.CANNOT_BEGIN
    assert "PyTorch finds no CUDA device" in measure.Found.load(path).failures[measure.THE_PROCESS]
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err
    assert measure.watch(path, 60, [sys.executable, "-c", f"import sys; sys.exit({measure.CANNOT_BEGIN})"]) == 1
    results = tmp_path / "results"
    monkeypatch.setattr(common, "RESULTS", results)
    assert program.main(["gpu"]) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "skipped: the coder finds no GPU to run on: PyTorch finds no CUDA device"
    assert not results.exists()


def test_the_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr("bench.gpu.cuda_status", lambda: "")
    part = '{"parts": {"a": {"x": 1}}, "failures": {"b": "why"}, "skipped": [], "running": null}'
    code = f"import sys; open(sys.argv[1], 'w').write('{part}')"
    monkeypatch.setattr(measure, "command", lambda suite: [sys.executable, "-c", code])
    assert program.main(["gpu"]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["benchmark"] == "gpu"
    assert found["failures"] == ["rans: b", "codec: b"]
    assert found["codec"]["parts"] == {"a": {"x": 1}}


def test_a_codec_that_has_met_no_shape(it):
    assert isinstance(it.fresh_codec(), Codec)
