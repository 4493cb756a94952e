"""Compiles CUDA kernels where they run, for machines that have a GPU and PyTorch but no nvcc.

NVRTC is CUDA's compiler as a library. PyTorch's CUDA wheels bring it; it needs no host compiler, no headers and, to
compile, no GPU. What it made is kept in the user's cache, so that a machine compiles each kernel once.
"""

import ctypes
import hashlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_void_p
from functools import cache
from pathlib import Path

from .errors import FastcodecError

# Functions without __host__ or __device__ are device code, constexpr ones of shared headers among them.
OPTIONS = ("--std=c++20", "--device-as-default-execution-space")

# NVRTC has no C++ library. These are all that kernels may include.
_INTEGERS = "\n".join(
    f"using {name} = {meaning};"
    for bits, kind in ((8, "char"), (16, "short"), (32, "int"), (64, "long long"))
    for name, meaning in ((f"int{bits}_t", f"signed {kind}"), (f"uint{bits}_t", f"unsigned {kind}"))
)
STANDARD_HEADERS = {
    "cstddef": "#pragma once\nnamespace std { using size_t = decltype(sizeof(0)); }\nusing std::size_t;\n",
    "cstdint": f"#pragma once\nnamespace std {{\n{_INTEGERS}\nusing uintptr_t = unsigned long long;\n}}\n"
    + "".join(f"using std::{name};\n" for name in [*re.findall(r"using (\w+) =", _INTEGERS), "uintptr_t"]),
}

LIBRARY_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")


class NvrtcError(FastcodecError, RuntimeError):
    """NVRTC refused a kernel, or failed. `log` is what it said."""

    def __init__(self, message: str, log: str = "") -> None:
        super().__init__(f"{message}\n{log}" if log else message)
        self.log = log


class NvrtcMissingError(NvrtcError):
    """No NVRTC was found, or none that loads."""


def candidates() -> Iterator[str]:
    """Where NVRTC may be, best first: only $FASTCODEC_NVRTC if set; else PyTorch's wheels, the loader, the toolkit."""
    if chosen := os.environ.get("FASTCODEC_NVRTC"):
        yield chosen
        return
    package = importlib.util.find_spec("nvidia")  # a namespace, so perhaps several folders
    for folder in (package and package.submodule_search_locations) or ():
        for wheel in ("cu13", "cuda_nvrtc"):
            yield from (str(Path(folder, wheel, "lib", name)) for name in LIBRARY_NAMES)
    yield from LIBRARY_NAMES
    for home in filter(None, (os.environ.get("CUDA_HOME"), "/usr/local/cuda")):
        yield from (str(Path(home, "lib64", name)) for name in LIBRARY_NAMES)


@cache
def load(paths: tuple[str, ...]) -> ctypes.CDLL:
    """The first NVRTC of `paths` that loads."""
    failures = []
    for path in paths:
        if os.path.isabs(path) and not os.path.exists(path):
            continue
        try:
            return _open(path)
        except OSError as error:
            failures.append(str(error))
    raise NvrtcMissingError(
        "no NVRTC to compile the CUDA kernels with: install PyTorch's CUDA wheel, which brings it, or the CUDA "
        f"toolkit, or name the library in $FASTCODEC_NVRTC ({'; '.join(failures) or f'no file {paths[0]}'})"
    )


def _open(path: str) -> ctypes.CDLL:
    library = ctypes.CDLL(path)
    program, size = c_void_p, POINTER(c_size_t)
    signatures = {
        "GetErrorString": [c_int],
        "Version": [POINTER(c_int), POINTER(c_int)],
        "CreateProgram": [POINTER(program), c_char_p, c_char_p, c_int, POINTER(c_char_p), POINTER(c_char_p)],
        "DestroyProgram": [POINTER(program)],
        "CompileProgram": [program, c_int, POINTER(c_char_p)],
        "GetProgramLogSize": [program, size],
        "GetProgramLog": [program, c_char_p],
        "GetCUBINSize": [program, size],
        "GetCUBIN": [program, c_char_p],
    }
    for name, arguments in signatures.items():
        function = getattr(library, f"nvrtc{name}")
        function.restype = c_char_p if name == "GetErrorString" else c_int
        function.argtypes = arguments
    # To compile, it opens this one by its bare name. The wheels' folder is not where the loader looks, so the loader
    # must know the library already.
    beside = Path(path).with_name(f"libnvrtc-builtins.so.{version(library)}")
    if beside.is_absolute() and beside.exists():
        ctypes.CDLL(str(beside))
    return library


def version(library: ctypes.CDLL) -> str:
    """Such as 13.0."""
    major, minor = c_int(), c_int()
    _check(library, library.nvrtcVersion(byref(major), byref(minor)))
    return f"{major.value}.{minor.value}"


def quoted_headers(source: Path) -> dict[str, Path]:
    """Every file that `source` includes in quotes, and that those include, under the name it is included by."""
    headers: dict[str, Path] = {}
    read: set[Path] = set()
    waiting = [source.resolve()]
    while waiting:
        file = waiting.pop()
        read.add(file)
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', file.read_text(encoding="utf-8"), flags=re.MULTILINE):
            path = (file.parent / name).resolve()
            if headers.setdefault(name, path) != path:
                raise NvrtcError(f'"{name}" names two files: {headers[name]} and {path}')
            if path not in read:
                waiting.append(path)
    return headers


def compile_image(source: Path, headers: dict[str, Path], architecture: str) -> bytes:
    """Machine code of `source` for one architecture, such as "sm_90", from the cache or from NVRTC.

    headers: the files that it includes, each under the name in its `#include "name"` (`quoted_headers` finds them).
    Raises NvrtcMissingError without NVRTC, and NvrtcError, with its log, where it refuses the source.
    """
    library = load(tuple(candidates()))
    texts = {name: path.read_bytes() for name, path in headers.items()}
    texts |= {name: text.encode() for name, text in STANDARD_HEADERS.items()}
    options = (f"--gpu-architecture={architecture}", *OPTIONS)
    code = source.read_bytes()
    entry = _cache_entry([version(library), *options, source.name, code, *_flat(sorted(texts.items()))])
    if (image := _read(entry)) is None:
        image = _compile(library, source.name, code, texts, options)
        _keep(entry, image)
    return image


def _flat(pairs: Iterable[tuple[str, bytes]]) -> Iterator[str | bytes]:
    for name, text in pairs:
        yield from (name, text)


def _check(library: ctypes.CDLL, result: int, log: str = "") -> None:
    if result != 0:
        raise NvrtcError(f"NVRTC: {library.nvrtcGetErrorString(result).decode()}", log)


def _compile(library: ctypes.CDLL, name: str, code: bytes, texts: dict[str, bytes], options: Sequence[str]) -> bytes:
    def strings(values: Iterable[bytes]) -> ctypes.Array:
        values = list(values)
        return (c_char_p * len(values))(*values)

    def fetch(what: str) -> bytes:
        size = c_size_t()
        _check(library, getattr(library, f"nvrtcGet{what}Size")(program, byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        _check(library, getattr(library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    program = c_void_p()
    names = strings(header.encode() for header in texts)
    created = library.nvrtcCreateProgram(
        byref(program), code, name.encode(), len(texts), strings(texts.values()), names
    )
    _check(library, created)
    try:
        result = library.nvrtcCompileProgram(program, len(options), strings(option.encode() for option in options))
        _check(library, result, fetch("ProgramLog").rstrip(b"\0").decode(errors="replace") if result else "")
        return fetch("CUBIN")
    finally:
        library.nvrtcDestroyProgram(byref(program))


def _cache_entry(parts: Iterable[str | bytes]) -> Path | None:
    """The file in the user's cache for an image made from these; None where there is no home for a cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # relative ones are to be ignored (XDG base directories)
        base = os.path.expanduser("~/.cache")
    if not os.path.isabs(base):
        return None
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return Path(base, "fastcodec", "kernels", f"{digest.hexdigest()}.cubin")


def _read(entry: Path | None) -> bytes | None:
    try:
        return entry.read_bytes() if entry else None
    except OSError:
        return None


def _keep(entry: Path | None, image: bytes) -> None:
    """Writes a cache entry in one step: another process sees all of it or none. A read-only cache is no error."""
    if entry is None:
        return
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=entry.parent)
        try:
            with open(handle, "wb") as file:
                file.write(image)
            os.replace(name, entry)
        except OSError:
            os.unlink(name)
    except OSError:
        pass
