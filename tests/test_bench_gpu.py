"""The GPU's benchmark without a GPU: in the host shim, where every line runs but CUDA's events and the driver's meters.

Nothing here looks at times.
"""

import contextlib
import json
import sys
import time

import pytest
import torch
from conftest import ROOT

from fastcodec.kernels.rans import _cuda


@pytest.fixture(scope="module")
def bench():
    """The package of benchmarks: it is in the checkout, and not installed."""
    sys.path.append(str(ROOT))
    try:
        import bench.__main__
        import bench.gpu
    finally:
        sys.path.remove(str(ROOT))
    return bench


@pytest.fixture
def machine(bench, simulator, monkeypatch):
    """The shim as a GPU of three multiprocessors, its marks the host's clock."""

    class Simulated(bench.gpu.Machine):
        def __init__(self):
            self.device = torch.device("cpu")
            self.name, self.multiprocessors, self.capability = "host shim", 3, 90
            self.nvml = bench.gpu.Nvml("none")

        def kernels(self):
            return _cuda.simulated(simulator)

        def most_symbols(self):
            return 1 << 30

        def side_stream(self):
            return contextlib.nullcontext()

        def synchronize(self):
            pass

        def hold(self, cycles=0):
            pass

        def mark(self):
            return time.perf_counter()

        def between(self, begin, end):
            return end - begin

        def image(self):
            return ("nvcc", _cuda.IMAGE) if _cuda.IMAGE.exists() else ("g++", None)

        def copy_bandwidth(self):
            return 1e9

    return Simulated()


@pytest.fixture
def sizes(bench):
    return bench.gpu.Sizes(
        symbols=3 * 64 * 96,
        checked_symbols=2 * 64 * 96,
        peer_symbols=3 * 64 * 64,
        repeats=2,
        energy_seconds=0.01,
        lanes=(1, 32),
        streams=(1, 3),
        image=(4, 6),
    )


def test_every_part_runs(bench, machine, sizes, capsys):
    found = json.loads(json.dumps(bench.gpu.run(machine, sizes)))
    assert found["failures"] == []
    assert found["skipped"] == []
    rows = {(row["indexes"], row["tables"]): row for row in found["full_gpu"]}
    assert {mix for mix, _ in rows} == set(bench.gpu.MIXES)
    assert len(rows) == 2 * len(bench.gpu.MIXES) - 2  # mixes that skip have no dense kernels
    for row in rows.values():
        assert row["symbols"] == sizes.symbols
        for kernel, least in (("encode", 3), ("decode", 3), ("reconstruct", 13)):
            assert row[kernel]["gsymbols"] > 0
            assert row[kernel]["bytes_per_symbol"] > least
        assert all(speed > 0 for speed in row["calls"].values())
        assert {isa["isa"] for isa in row["cpu"]["one_thread"]} == set(bench.gpu.available_isas())
    assert rows["swift at quality 60", "skip"]["coded"] == pytest.approx(0.643, abs=0.02)
    assert rows["1..48", "dense"]["coded"] == 1
    for image in found["latency"]:
        shapes = {(row["lanes"], row["streams"]): row for row in image["shapes"]}
        assert {(1, 1), (1, 3), (32, 1), (32, 3)} <= shapes.keys()
        chosen = {row["preset"]: row for row in image["shapes"] if row["preset"]}
        assert chosen["size"]["bytes_beside_size_preset"] == 0
        assert shapes[32, 3]["bytes"] > shapes[1, 1]["bytes"]
    assert [row["coder"] for row in found["peers"]] == ["fastcodec", "torch_ans", "nvCOMP ANS"]
    assert found["energy"]["gsymbols"] > 0
    assert [row["mixtures"] for row in found["mixtures"]] == list(bench.gpu.MIXTURES)
    assert all(row["encode_msymbols"] > 0 and row["decode_msymbols"] > 0 for row in found["mixtures"])
    text = capsys.readouterr().out
    assert "A full GPU" in text
    assert "One image, swift at quality 60" in text
    assert "preset size" in text


def test_instructions_come_from_the_machine_code(bench, machine, sizes):
    if machine.image()[1] is None:
        pytest.skip("no image: it needs nvcc")
    try:
        counts = bench.gpu.instructions(machine)
    except RuntimeError as error:  # no nvdisasm
        pytest.skip(str(error))
    kernels = {"decode_full_dense", "decode_full_skip"}
    assert kernels | {"encode_dense", "encode_skip"} <= counts.keys()
    machine.nvml.sm_mhz = lambda: 1980
    row = bench.gpu.full_gpu(machine, sizes, bench.gpu.Bounds(1e9, 3e9, counts), "1..20", False)
    assert all(row[kernel]["of_issue_rate"] > 0 for kernel in ("encode", "decode", "reconstruct"))


def test_what_fails_leaves_the_rest(bench, machine, sizes, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(bench.gpu, "_reconstruct", broken)
    monkeypatch.setattr(bench.gpu, "energy", broken)
    monkeypatch.setattr(machine, "copy_bandwidth", broken)
    monkeypatch.setattr(bench.gpu, "MIXES", {name: bench.gpu.MIXES[name] for name in ("1..48", "swift at quality 60")})
    found = json.loads(json.dumps(bench.gpu.run(machine, sizes)))
    assert found["failures"] == [
        "the machine",
        "full GPU, 1..48, skip",
        "full GPU, 1..48, dense",
        "full GPU, swift at quality 60, skip",
        "energy",
    ]
    assert all("illegal memory access" in row["failed"] for row in found["full_gpu"])
    assert "illegal memory access" in found["energy"]["failed"]
    assert found["latency"][0]["shapes"]
    assert "energy failed: an illegal memory access" in capsys.readouterr().out


def test_a_wrong_result_is_a_failure(bench, machine, sizes, monkeypatch):
    real = bench.gpu.encode
    monkeypatch.setattr(
        bench.gpu, "encode", lambda *a, **k: [data + b"\0" * (_cuda.simulator() is None) for data in real(*a, **k)]
    )
    with pytest.raises(bench.gpu.MismatchError, match="payloads"):
        bench.gpu.full_gpu(machine, sizes, bench.gpu.Bounds(None, None, {}), "8", True)


def test_no_time_left(bench, machine, sizes, capsys):
    found = bench.gpu.run(machine, sizes, seconds=0)
    assert found["full_gpu"] == []
    assert found["energy"] == found["peers"] == {"skipped": "no time was left"}
    assert len(found["skipped"]) > 15
    assert "left out after 0 s: full GPU, 1..48, skip; " in capsys.readouterr().out.replace("\n", " ")


def test_peers_that_are_there(bench, machine, sizes, monkeypatch):
    """Each is measured, and one that fails fails alone."""

    def peer(machine, batch):
        return (lambda: None), (lambda: None), 1000, "zeros"

    def broken(machine, batch):
        raise RuntimeError("another version")

    monkeypatch.setattr(bench.gpu, "PEERS", {"good": peer, "broken": broken})
    ours, good, bad = bench.gpu.peers(machine, sizes)
    assert ours["coder"] == "fastcodec"
    assert good["coded"] == "zeros"
    assert good["decode_ours_over_it"] > 0
    assert "another version" in bad["failed"]


def test_without_a_gpu_it_says_so(bench, capsys, tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    monkeypatch.setattr(bench._common, "RESULTS", tmp_path)
    assert bench.__main__.main(["gpu"]) == 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "skipped: the coder finds no GPU to run on: PyTorch finds no CUDA device"
    assert not list(tmp_path.iterdir())


def test_the_file_is_written(bench, machine, sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(bench._common, "RESULTS", tmp_path)
    monkeypatch.setattr(bench.gpu, "MIXES", {name: bench.gpu.MIXES[name] for name in ("1..48", "swift at quality 60")})
    run = bench.gpu.run
    monkeypatch.setattr(bench.gpu, "run", lambda: run(machine, sizes))
    assert bench.__main__.main(["gpu"]) == 0
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["benchmark"] == "gpu"
    assert found["date"]
    assert found["gpu"]["name"] == "host shim"
    assert found["failures"] == []
