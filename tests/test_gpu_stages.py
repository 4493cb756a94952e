"""The stages of `make gpu`: limits are kept; one that hangs or dies costs only itself, and what it started goes too."""

import json
import os
import time
from pathlib import Path

import pytest

from bench.gpu import __main__ as gpu_stages
from bench.gpu.__main__ import Stage, run


def python(name: str, code: str, seconds: float = 20.0, **options) -> Stage:
    return Stage(name, ("-c", code), seconds, **options)


def outcomes(tmp_path: Path, chosen: list, seconds: float = 60.0) -> tuple[dict[str, str], list[str]]:
    said: list[str] = []
    found = run(chosen, tmp_path, seconds, said.append)
    written = json.loads((tmp_path / "gpu-stages.json").read_text())
    assert [row["status"] for row in written["stages"]] == [outcome.status for outcome in found]
    return {outcome.name: outcome.status for outcome in found}, said


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_stage_that_hangs_or_dies_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_stages, "GRACE", 0.5)
    child = tmp_path / "child"
    deaf = (
        "import os, pathlib, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(99)']); "
        f"pathlib.Path({str(child)!r}).write_text(str(p.pid)); print('begun'); time.sleep(99)"
    )
    start = time.monotonic()
    found, said = outcomes(
        tmp_path,
        [
            (python("hangs", deaf, 2.0), False),
            (python("crashes", "import os; print('so far'); os.abort()"), False),
            (python("fails", "raise ValueError('the cause')"), False),
            (python("works", "print('done')"), False),
        ],
    )
    assert time.monotonic() - start < 20
    assert found == {
        "hangs": "out of time",
        "crashes": "killed by signal 6",
        "fails": "failed (1)",
        "works": "passed",
    }
    assert not alive(int(child.read_text()))
    assert any("ValueError: the cause" in line for line in said)
    log = (tmp_path / "gpu.log").read_text()
    assert "[hangs] begun" in log
    assert "[crashes] so far" in log
    assert "[works] done" in log


def test_a_stage_beside_others_stands_still_while_one_measures(tmp_path):
    beat = "import time\nwhile True: print(time.monotonic(), flush=True); time.sleep(0.05)"
    measure = "import time; print(time.monotonic(), flush=True); time.sleep(1.5); print(time.monotonic(), flush=True)"
    found, _ = outcomes(
        tmp_path,
        [
            (python("beside", beat, 5.0), True),
            (python("waits", "import time; time.sleep(1)"), False),
            (python("measures", measure, measures=True), False),
        ],
    )
    assert found == {"beside": "out of time", "waits": "passed", "measures": "passed"}
    lines = [line.split() for line in (tmp_path / "gpu.log").read_text().splitlines()]
    beats = [float(value) for name, value in lines if name == "[beside]"]
    begin, end = (float(value) for name, value in lines if name == "[measures]")
    assert sum(begin + 0.2 < beat < end - 0.2 for beat in beats) == 0
    assert sum(beat > end for beat in beats) > 3


def test_all_of_it_ends_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_stages, "GRACE", 0.5)
    sleep = "import time; time.sleep(60)"
    start = time.monotonic()
    found, said = outcomes(tmp_path, [(python("long", sleep, 90.0), False), (python("late", sleep), False)], 2.0)
    assert time.monotonic() - start < 10
    assert found == {"long": "out of time", "late": "not begun"}
    assert "late: not begun, no time is left" in said


def test_what_a_stage_leaves_is_kept(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "weights").write_text("w")
    outcomes(tmp_path / "out", [(python("makes", "pass", keeps=(folder / "weights", folder / "nothing")), False)])
    assert (tmp_path / "out" / "weights").read_text() == "w"


def test_the_command_line(tmp_path, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        gpu_stages.main(["nothing"])
    assert "no stage named nothing; there are compile, smoke, latency, train" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu_stages.main(["train"])
    assert "train needs --data" in capsys.readouterr().err
    monkeypatch.setattr(gpu_stages, "stages", lambda *_: {"one": python("one", "import sys; sys.exit(3)")})
    assert gpu_stages.main(["one", "--out", str(tmp_path)]) == 1
    assert "failed (3)" in capsys.readouterr().out


def test_every_stage_can_be_started(tmp_path):
    """The modules and tests that they name are there; without a GPU each says so and ends."""
    for stage in gpu_stages.stages(tmp_path, tmp_path, 100.0).values():
        assert stage.command[0] == "-m"
        module = stage.command[1]
        assert module == "pytest" or (Path(*module.split(".")).with_suffix(".py").exists() or module == "bench")
        for argument in stage.command:
            if argument.startswith("tests/"):
                assert Path(argument).exists()
    assert os.cpu_count()
