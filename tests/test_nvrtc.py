"""NVRTC, which compiles the CUDA kernels where nvcc is missing. It needs no GPU, but is on few machines without one."""

import re
from pathlib import Path

import pytest

from fastcodec.errors import FastcodecError
from fastcodec.kernels import nvrtc

SOURCE = Path(nvrtc.__file__).parent / "rans" / "cuda" / "kernels.cu"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fastcodec" / "kernels"


@pytest.fixture
def needs_nvrtc() -> None:
    try:
        nvrtc.load(tuple(nvrtc.candidates()))
    except nvrtc.NvrtcMissingError as error:
        pytest.skip(str(error))


def test_missing_library_is_a_typed_error(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTCODEC_NVRTC", str(tmp_path / "libnvrtc.so.13"))
    with pytest.raises(nvrtc.NvrtcMissingError, match="FASTCODEC_NVRTC"):
        nvrtc.compile_image(SOURCE, {}, "sm_90")
    assert issubclass(nvrtc.NvrtcMissingError, FastcodecError)


def test_headers_are_found():
    headers = nvrtc.quoted_headers(SOURCE)
    assert {"layout.h", "rans.h", "../../intrinsics.cuh"} <= headers.keys()
    assert all(path.is_file() for path in headers.values())


def test_kernels_need_no_other_standard_header():
    for path in (SOURCE, *nvrtc.quoted_headers(SOURCE).values()):
        included = re.findall(r"^\s*#\s*include\s+<([^>]+)>", path.read_text(), flags=re.MULTILINE)
        assert set(included) <= nvrtc.STANDARD_HEADERS.keys(), path


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "sm_120"])
def test_compiles_the_kernels_once(architecture, cache, needs_nvrtc, monkeypatch):
    image = nvrtc.compile_image(SOURCE, nvrtc.quoted_headers(SOURCE), architecture)
    assert image.startswith(b"\x7fELF")
    assert b"fastcodec_rans_decode_full_dense\0" in image
    assert [path.read_bytes() for path in cache.iterdir()] == [image]
    monkeypatch.setattr(nvrtc, "_compile", None)
    assert nvrtc.compile_image(SOURCE, nvrtc.quoted_headers(SOURCE), architecture) == image


def test_another_source_is_another_image(cache, needs_nvrtc, tmp_path):
    header, source = tmp_path / "number.h", tmp_path / "kernel.cu"
    source.write_text(
        '#include <cstdint>\n#include "number.h"\nextern "C" __global__ void put(uint64_t* to) { *to = N; }'
    )
    images = set()
    for number in (1, 2, 2):
        header.write_text(f"#define N {number}\n")
        images.add(nvrtc.compile_image(source, {"number.h": header}, "sm_90"))
    assert len(images) == 2
    assert len(list(cache.iterdir())) == 2


def test_refused_source_is_a_typed_error_with_the_log(cache, needs_nvrtc, tmp_path):
    source = tmp_path / "kernel.cu"
    source.write_text('extern "C" __global__ void put(int* to) { *to = nothing; }')
    with pytest.raises(nvrtc.NvrtcError) as caught:
        nvrtc.compile_image(source, {}, "sm_90")
    assert 'kernel.cu(1): error: identifier "nothing" is undefined' in caught.value.log
    assert not cache.exists()


@pytest.mark.parametrize("home", ["a file", "relative"])
def test_a_cache_that_cannot_be_written_is_no_error(home, needs_nvrtc, tmp_path, monkeypatch):
    base = tmp_path / "file"
    base.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(base) if home == "a file" else "relative")
    monkeypatch.setenv("HOME", str(base))
    source = tmp_path / "kernel.cu"
    source.write_text('extern "C" __global__ void put(int* to) { *to = 1; }')
    for _ in range(2):
        assert nvrtc.compile_image(source, {}, "sm_90").startswith(b"\x7fELF")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kernel.cu"]
