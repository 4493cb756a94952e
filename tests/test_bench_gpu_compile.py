"""Compiling beforehand, without a GPU: that a kernel compiles as a launch does, and what failures leave."""

import os
import subprocess
import sys
from functools import partial

import pytest
from conftest import ROOT

pytest.importorskip("triton")

from bench.gpu import compile as subject
from fastcodec.kernels import triton as kernels


def test_every_module_that_launches_is_compiled():
    folder = next(iter(kernels.__path__))
    launching = [name[:-3] for name in os.listdir(folder) if name.endswith(".py") and name[:-3] in subject.MODULES]
    assert sorted(launching) == sorted(subject.MODULES)
    assert all(subject.builds(module) for module in subject.MODULES)


@pytest.mark.parametrize("kernel", ["to_pixels", "decode_parameters, anchors, 64 latents, few"])
def test_a_kernel_compiles_as_it_is_launched(kernel, tmp_path):
    """In a process of its own, in which nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TRITON_INTERPRET",)}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "bench.gpu.compile", "--target", "90", "--processes", "1", "--only", kernel]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 tasks done, 0 failed" in done.stdout
    assert list(tmp_path.rglob("*.cubin"))


def test_tasks_that_fail_or_die_leave_the_rest(capsys):
    done = subject.run_tasks(
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
