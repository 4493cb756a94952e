"""Builds the compiled kernels next to their sources: `python kernels/build.py`.

Writes build/kernels/build.ninja and runs ninja on it. Up to date, that takes some milliseconds. $CXX and $CXXFLAGS
choose the compiler and add to its flags. Nothing here needs PyTorch.

The CUDA kernels come in two parts. The host library is plain C++ that finds the driver at run time, so it is built
everywhere, GPU or not. The image, machine code for several generations of GPUs, is built where nvcc is found: $NVCC,
which may be empty to build none, else one on the path, in $CUDA_HOME/bin or in /usr/local/cuda/bin. A machine without
it compiles the kernels at their first use (nvrtc.py).
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
BUILD = KERNELS.parent / "build" / "kernels"
X86 = ("x86_64", "amd64")

CXX_FLAGS = "-std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi -pthread"
# The new library replaces the old one in one step: a process that has it loaded keeps its own.
LINK = "$cxx $ldflags -o $out.new $in $libs && mv -f $out.new $out"

AVX2_FLAGS = "-mavx2 -mfma -mbmi -mbmi2 -mpopcnt -mlzcnt"
AVX512_FLAGS = (
    f"{AVX2_FLAGS} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi2 "
    "-Wno-uninitialized -Wno-maybe-uninitialized"  # g++ 12 warns inside its own intrinsics
)
# The coder's sources, each with the flags of its instruction set.
RANS_SOURCES = dict.fromkeys((f"rans/cpu/{name}.cpp" for name in ("library", "encoder", "decoder", "scalar")), "")
RANS_SOURCES_X86 = {"rans/cpu/avx2.cpp": AVX2_FLAGS, "rans/cpu/avx512.cpp": AVX512_FLAGS}
# CompressAI's coder has a library of its own.
RANS64_SOURCES = ("rans64/rans64.cpp", "rans64/latents.cpp")

CUDA_SOURCE = "rans/cuda/kernels.cu"
CUDA_HOST_SOURCES = tuple(f"rans/cuda/{name}.cpp" for name in ("driver", "device_tables", "plan", "api"))
NVCC_OLDEST = (12, 8)  # the first that knows sm_100 and sm_120
# One machine code serves its whole generation: sm_80 also 8.6 and 8.9, sm_100 also 10.3, sm_120 also 12.1.
CUDA_TARGETS = (80, 90, 100, 120)
# PTX, for the driver to compile, serves every other GPU. That of the oldest target reaches the most of them (Orin is
# 8.7 and runs no desktop code), and comes free with sm_80's machine code, which is made from it.
CUDA_PTX = 80
NVCC_FLAGS = "-std=c++20 -O3 --Werror all-warnings"


class BuildError(RuntimeError):
    """Something that the build needs is missing."""


def library_path() -> Path:
    """The coder's shared library for this platform."""
    return KERNELS / "rans" / f"_rans_cpu.{sysconfig.get_platform()}.so"


def rans64_library_path() -> Path:
    """The shared library of CompressAI's coder."""
    return KERNELS / "rans64" / f"_rans64.{sysconfig.get_platform()}.so"


def cuda_library_path() -> Path:
    """The shared library that loads and launches the CUDA kernels."""
    return KERNELS / "rans" / f"_rans_cuda.{sysconfig.get_platform()}.so"


def cuda_image_path() -> Path:
    """The CUDA kernels' machine code. It does not depend on the platform, nor on PyTorch."""
    return KERNELS / "rans" / "_rans_cuda.fatbin"


def rans_sources() -> dict[str, str]:
    """The coder's sources for this machine, relative to kernels/, with their extra flags."""
    return RANS_SOURCES | (RANS_SOURCES_X86 if platform.machine().lower() in X86 else {})


def compiler() -> str:
    """The C++ compiler: $CXX, else the first of g++, clang++ and c++ that is there."""
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++", "c++")):
        if shutil.which(name.split()[0]):
            return name
    raise BuildError("no C++ compiler found: install g++ 12 or newer (or clang++), or name one in $CXX")


def ninja() -> list[str]:
    """The command that runs ninja: that of the `ninja` package beside this Python, else one on the path."""
    beside = Path(sys.executable).parent / "ninja"
    if beside.exists():
        return [str(beside)]
    if found := shutil.which("ninja"):
        return [found]
    raise BuildError("ninja not found: pip install ninja")


def nvcc() -> str | None:
    """The CUDA compiler's path, or None: $NVCC if it is set, else where toolkits put it."""
    if (chosen := os.environ.get("NVCC")) is not None:
        if chosen and not shutil.which(chosen):
            raise BuildError(f"NVCC={chosen}: no such program")
        return shutil.which(chosen) if chosen else None
    folders = [Path(home) / "bin" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return shutil.which("nvcc") or next(filter(None, (shutil.which("nvcc", path=folder) for folder in folders)), None)


def nvcc_version(command: str) -> str:
    """The version that `nvcc --version` names, such as 13.0.88."""
    text = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
    if match := re.search(r"\bV(\d+\.\d+\.\d+)", text):
        return match[1]
    raise BuildError(f"{command} --version names no version")


def image_compiler() -> str | None:
    """The nvcc that builds the image, or None: there is none, or it is too old and a notice says so."""
    command = nvcc()
    if command is None:
        return None
    version = nvcc_version(command)
    if tuple(int(part) for part in version.split(".")[:2]) >= NVCC_OLDEST:
        return command
    oldest = ".".join(map(str, NVCC_OLDEST))
    print(f"kernels/build.py: no CUDA image: {command} is {version}, older than {oldest}", file=sys.stderr)
    return None


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _cxx_rules(flags: str, link_flags: str) -> list[str]:
    return [
        "ninja_required_version = 1.5",
        f"cxx = {compiler()}",
        f"cxxflags = {CXX_FLAGS} {flags} {os.environ.get('CXXFLAGS', '')}".rstrip(),
        f"ldflags = -pthread {link_flags}",
        "",
        "rule cxx",
        "  command = $cxx $cxxflags $isa -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in",
        "",
        "rule link",
        f"  command = {LINK}",
        "  description = link $out",
        "",
    ]


def _linked(sources: dict[Path, str], folder: Path, output: Path, libs: str = "") -> list[str]:
    """The statements for one library or program of these sources, each with its extra flags; objects go to `folder`."""
    lines, objects = [], []
    for source, isa in sources.items():
        target = _escape(folder / f"{source.stem}.o")
        lines += [f"build {target}: cxx {_escape(source)}", f"  isa = {isa}"]
        objects.append(target)
    return [*lines, f"build {_escape(output)}: link {' '.join(objects)}", f"  libs = {libs}", ""]


def nvcc_flags() -> str:
    """nvcc's flags for the image: warnings are errors, and each target's machine code comes beside one PTX."""
    codes = {target: [f"sm_{target}"] for target in CUDA_TARGETS}
    codes[CUDA_PTX].append(f"compute_{CUDA_PTX}")
    targets = (f"'-gencode=arch=compute_{target},code=[{','.join(code)}]'" for target, code in codes.items())
    return f"-fatbin {NVCC_FLAGS} {' '.join(targets)}"


def _image(command: str, source: Path, output: Path) -> list[str]:
    """The statements for the image. nvcc compiles its targets side by side (--threads)."""
    return [
        "rule image",
        f"  command = {shlex.quote(command)} {nvcc_flags()} --threads 0 -MD -MF $out.d -o $out.new $in "
        "&& mv -f $out.new $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = compile $in for GPUs",
        "",
        f"build {_escape(output)}: image {_escape(source)}",
        "",
    ]


def _run(folder: Path, lines: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "build.ninja"
    text = "\n".join(lines)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    subprocess.run([*ninja(), "--quiet", "-C", str(folder)], check=True)


def build() -> Path:
    """Builds what is out of date and returns the CPU library's path."""
    lines = _cxx_rules("-O3", "-shared -Wl,-z,defs")
    lines += _linked({KERNELS / source: isa for source, isa in rans_sources().items()}, BUILD, library_path())
    lines += _linked({KERNELS / source: "" for source in RANS64_SOURCES}, BUILD, rans64_library_path())
    lines += _linked({KERNELS / source: "" for source in CUDA_HOST_SOURCES}, BUILD, cuda_library_path(), "-ldl")
    if command := image_compiler():
        lines += _image(command, KERNELS / CUDA_SOURCE, cuda_image_path())
    else:
        cuda_image_path().unlink(missing_ok=True)  # an old one would not fit a new host library
    _run(BUILD, lines)
    return library_path()


def build_program(name: str, sources: dict[Path, str], flags: str) -> Path:
    """Builds a test's program from these sources, with the kernels' headers at hand, and returns its path."""
    folder = BUILD.parent / name
    lines = _cxx_rules(f"{flags} -I{_escape(KERNELS)}", flags)
    _run(folder, [*lines, *_linked(sources, folder, folder / name)])
    return folder / name


def main() -> int:
    try:
        build()
    except BuildError as error:
        print(f"kernels/build.py: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
