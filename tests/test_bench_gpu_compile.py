"""Compiling beforehand, without a GPU: what is recorded, that it compiles as a launch does, and what failures leave."""

import os
import subprocess
import sys
from functools import partial

import pytest
from conftest import ROOT
from test_bench_gpu import bench  # noqa: F401 (fixture: the package)

pytest.importorskip("triton")


@pytest.fixture
def subject(bench):  # noqa: F811
    import bench.gpu_compile  # in the package that the fixture has found

    return bench.gpu_compile


def test_every_launch_of_the_codec_is_recorded(subject):
    """As many as the kernels' own lists have."""
    from fastcodec.kernels.triton import hyper_synthesis, parameters, pixels, pointwise, residual, upsample

    launches = subject.recorded()
    for module in (hyper_synthesis, parameters, pixels, pointwise, residual, upsample):
        builds = module.builds()
        here = [launch for launch in launches if launch.module == module.__name__]
        assert len(here) == len(builds), module.__name__
        left_out = {"LIMITS", "WEIGHT_STRIDE"}  # the model's, and how many qualities are encoded at a time
        for build in builds:
            constants = build.constants.items()
            shape = {name: value for name, value in constants if value is not None and name not in left_out}
            fitting = [launch for launch in here if shape.items() <= dict(launch.options).items()]
            assert fitting, build.name
            assert any(dict(launch.options)["num_warps"] == build.warps for launch in fitting)


def test_a_kernel_compiles_as_it_is_launched(tmp_path):
    """In a process of its own, in which nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET",)}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench.gpu_compile", "--target", "90", "--processes", "1", "--only"]
    run = partial(subprocess.run, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    done = run([*command, "_to_pixels"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 parts done, 0 failed" in done.stdout
    assert list(tmp_path.rglob("*.cubin"))


def test_parts_that_fail_or_die_leave_the_rest(subject, capsys):
    done = subject.run_parts(
        [
            ("says", partial(str, "well")),
            ("raises", partial(int, "no number")),
            ("dies", partial(os._exit, 9)),
            ("says too", partial(str, "well")),
        ],
        1,
        60.0,
    )
    assert {item.name: bool(item.failed) for item in done} == {
        "says": False,
        "raises": True,
        "dies": True,
        "says too": False,
    }
    printed = capsys.readouterr().out
    assert "ValueError: invalid literal for int()" in printed
    assert "dies: FAILED" in printed
