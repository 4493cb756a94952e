"""What all tests share: where Triton runs, which tests need a GPU, and photographs to compress."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fastcodec.kernels import build

if not torch.cuda.is_available():
    # Read by triton.jit when it decorates a kernel, so before any test module imports one.
    os.environ.setdefault("TRITON_INTERPRET", "1")

ROOT = Path(__file__).resolve().parents[1]

# An installed package can be tested away from its repository, where there are no benchmarks, documents and sources.
if not (ROOT / "kernels").is_dir():
    collect_ignore_glob = ["test_bench_*", "test_*_study.py", "test_context_models.py", "test_gpu_pack.py"]
    collect_ignore_glob += ["test_gpu_stages.py", "test_zoo_rates.py", "test_docs.py", "test_layout.py"]
    collect_ignore_glob += ["test_cuda_build.py", "test_triton_build.py"]
    collect_ignore_glob += ["test_graphics.py", "test_hard_pictures.py"]  # whose screens are a benchmark's

# The coder's CUDA kernels on the CPU: their source as it is, in the host shim. Beside these, a driver needs a main.
SHIM = ROOT / "tests" / "cuda_shim"
SIMULATION = {
    SHIM / "rans_kernels.cpp": f"-include {SHIM}/cuda_shim.h -I{SHIM} -Wno-unknown-pragmas -fno-strict-aliasing",
    SHIM / "cuda_shim.cpp": f"-I{SHIM}",
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def kodak() -> list[Path]:
    """The Kodak images, sorted by name, from the folder $FASTCODEC_KODAK, else ../shared/data/kodak."""
    folder = Path(os.environ.get("FASTCODEC_KODAK") or ROOT.parent / "shared" / "data" / "kodak")
    images = sorted(folder.glob("kodim*.png"))
    if not images:
        pytest.skip(f"no Kodak images in {folder}: set FASTCODEC_KODAK to their folder")
    return images


@pytest.fixture(scope="session")
def simulator() -> Path:
    """A CUDA driver whose GPU is the CPU, with the coder's kernels: for `simulation.simulated`."""
    try:
        return build.build_program("cuda_simulator", SIMULATION, "-O2 -g -shared")
    except build.BuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def photographs() -> dict[str, np.ndarray]:
    """Photographs that scikit-image's wheel holds, by name: uint8 [height, width, 3], read-only. None is downloaded."""
    from skimage import data

    images = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    for image in images.values():
        image.flags.writeable = False
    return images


@pytest.fixture(scope="module")
def codec():
    """The default model on the CPU."""
    from fastcodec import Codec

    return Codec.load("swift", "cpu")


@pytest.fixture(scope="module")
def one_thread():
    """For networks so small that threads would mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    """Where Triton's kernels run; on the CPU in its interpreter."""
    return request.param


@pytest.fixture(scope="session")
def compressai():
    """The package, as the benchmarks import it."""
    if importlib.util.find_spec("compressai") is None:
        pytest.skip("CompressAI is not installed: `make bench` installs it")
    from bench import rivals

    return rivals.load()


@pytest.fixture
def network_tiles(monkeypatch):
    """No tile is tried losslessly: small pictures, which always are, go through the networks too."""
    from fastcodec import lossless

    monkeypatch.setattr(lossless, "worth_trying", lambda *_: False)
