"""The short GPU benchmark without a GPU: every part in simulation, and what happens to parts that fail, die or hang.

Nothing here looks at times.
"""

import json
import sys
import time

import numpy as np
import pytest
from test_bench_gpu import bench, machine  # noqa: F401 (fixtures: the package, and the host shim as a GPU)
from test_bench_gpu_codec import codec, one_thread  # noqa: F401 (fixtures: a codec in simulation, on one thread)

from fastcodec.errors import UnavailableError

pytestmark = pytest.mark.usefixtures("network_tiles")


@pytest.fixture
def latency(bench, monkeypatch):  # noqa: F811
    import bench.gpu_latency  # in the package that the fixture has found

    random = np.random.default_rng(1)
    cells = [random.integers(0, 256, (512, 768, 3), dtype=np.uint8) for _ in range(3)]
    monkeypatch.setattr(bench.gpu_codec, "photographs", lambda: ("Kodak", cells))
    monkeypatch.setattr(bench.gpu_codec, "quality_near", lambda *arguments: 50)  # gpu_codec's own test has it
    monkeypatch.setattr(bench.gpu_latency, "MANY", 5)
    monkeypatch.setattr(bench.gpu_latency, "ROUNDS", 4)
    return bench.gpu_latency


@pytest.fixture
def sizes(latency):
    return latency.Sizes(
        images=((48, 32), (64, 32), (32, 64)),
        batches=(2, 1),
        studied=(1,),
        warm_ups=1,
        repeats=1,
        rate_seconds=0,
    )


@pytest.fixture
def it(latency, machine, codec, sizes, tmp_path):  # noqa: F811
    folder = tmp_path / "files"
    folder.mkdir()
    return latency.Subject(folder, machine, codec, sizes)


def test_every_part_runs(latency, it, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency.gpu_codec, "launches", lambda *arguments: {"launches": []})  # gpu_codec's own test
    path, saved = tmp_path / "latency.json", []
    save = latency.Found.save
    monkeypatch.setattr(latency.Found, "save", lambda found: save(found) or saved.append(path.read_text("utf-8")))
    assert latency.measure(latency.Found(path), it, 1e6) == latency.FINISHED
    found = json.loads(path.read_text("utf-8"))
    names = [part.name for part in latency.parts(it.sizes)]
    assert list(found["parts"]) == names
    assert (found["failures"], found["skipped"], found["running"]) == ({}, [], None)
    assert len({len(json.loads(text)["parts"]) for text in saved}) == len(names) + 1  # after every figure
    many = found["parts"]["decode 5 files, latency"]
    assert 1 <= many["shapes"] <= 4
    assert [item["count"] for item in many["captures"]][-1] == 0, "later rounds replay"
    assert sum(item["count"] for item in many["captures"]) == many["shapes"]
    assert many["later_rounds"]["runs"] == 2 * 5
    for preset in latency.PRESETS:
        row = found["parts"][f"decode 48x32, graph, {preset}"]
        assert {row[clock]["runs"] for clock in ("wall", "gpu", "host")} == {1}
        stages = found["parts"][f"decode 48x32, stages, {preset}"]["stages_us"]
        assert list(stages) == [*latency.gpu_codec.STAGES, "other"]
    assert "decode 48x32, graph, latency: bytes" in capsys.readouterr().out
    # A process that follows runs nothing again, and finds the files.
    monkeypatch.setattr(it.cpu, "encode", None)
    assert latency.measure(latency.Found.load(path), it, 1e6) == latency.FINISHED
    assert it.file((48, 32), "size")


def test_a_wrong_result_is_a_failure_and_time_ends(latency, it, tmp_path, monkeypatch):
    monkeypatch.setattr(latency.gpu_codec, "_by_graph", lambda *arguments: {})  # pixels stay zero
    chosen = [part for part in latency.parts(it.sizes) if part.name.startswith("decode 48x32, graph")]
    monkeypatch.setattr(latency, "parts", lambda sizes: chosen)
    found = latency.Found(tmp_path / "latency.json")
    assert latency.measure(found, it, 1e6) == latency.FINISHED
    assert "levels from the CPU's pixels" in found.failures["decode 48x32, graph, size"]
    found = latency.Found(tmp_path / "latency.json")
    latency.measure(found, it, 0)
    assert found.skipped == [part.name for part in chosen]


def test_an_error_that_stays_ends_the_process(latency, it, tmp_path, monkeypatch):
    def broken(_):
        raise UnavailableError("the GPU failed")

    bodies = {"a": lambda _: {}, "b": broken, "c": lambda _: {"x": 1}}
    parts = [latency.Part(name, body, name) for name, body in bodies.items()]
    monkeypatch.setattr(latency, "parts", lambda sizes: parts)
    found = latency.Found(tmp_path / "latency.json")
    assert latency.measure(found, it, 1e6) == latency.POISONED
    assert (list(found.parts), list(found.failures)) == (["a"], ["b"])
    assert latency.measure(latency.Found.load(found.path), it, 1e6) == latency.FINISHED
    assert list(latency.Found.load(found.path).parts) == ["a", "c"]


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


def test_parts_that_die_or_hang_leave_the_rest(latency, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(latency, "MOST_PART_SECONDS", 1.0)
    path = tmp_path / "latency.json"
    assert latency.watch(path, 60, [sys.executable, "-c", WORKER]) == 1
    found = latency.Found.load(path)
    assert list(found.parts) == ["good", "last"]
    assert found.failures == {"dies": "its process ended with status 9", "hangs": "it took too long"}
    assert "failed: dies" in capsys.readouterr().out


def test_a_process_that_cannot_begin(latency, tmp_path):
    start = time.monotonic()
    path = tmp_path / "latency.json"
    assert latency.watch(path, 60, [sys.executable, "-c", "import sys; sys.exit(1)"]) == 1
    assert "status 1 before its first part" in str(latency.Found.load(path).failures)
    assert time.monotonic() - start < 30


def test_without_a_gpu_it_says_so(latency, tmp_path, monkeypatch, capsys):
    def missing():
        raise latency._common.CannotRunError("the coder finds no GPU to run on: PyTorch finds no CUDA device")

    monkeypatch.setattr(latency, "Machine", missing)
    path = tmp_path / "latency.json"
    assert latency.main(["--measure", str(path), str(tmp_path), "0"]) == latency.CANNOT_BEGIN
    assert "PyTorch finds no CUDA device" in latency.Found.load(path).failures["the process that measures"]
    assert "PyTorch finds no CUDA device" in capsys.readouterr().err
    assert latency.watch(path, 60, [sys.executable, "-c", f"import sys; sys.exit({latency.CANNOT_BEGIN})"]) == 1
