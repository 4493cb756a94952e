"""Builds the compiled kernels next to their sources: `python kernels/build.py`.

Writes build/kernels/build.ninja and runs ninja on it. Up to date, that takes some milliseconds. $CXX and $CXXFLAGS
choose the compiler and add to its flags. Nothing here needs PyTorch.
"""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

KERNELS = Path(__file__).resolve().parent
BUILD = KERNELS.parent / "build" / "kernels"
X86 = ("x86_64", "amd64")

CXX_FLAGS = "-std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi -pthread"

# The coder's sources, each with the flags of its instruction set.
RANS_SOURCES = {"rans/cpu.cpp": "", "rans/cpu_scalar.cpp": ""}
RANS_SOURCES_X86 = {
    "rans/cpu_avx2.cpp": "-mavx2 -mfma -mbmi -mbmi2 -mpopcnt -mlzcnt",
    "rans/cpu_avx512.cpp": (
        "-mavx2 -mfma -mbmi -mbmi2 -mpopcnt -mlzcnt -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vbmi2 "
        "-Wno-maybe-uninitialized"  # g++ 12 warns inside its own intrinsics
    ),
}


class BuildError(RuntimeError):
    """Something that the build needs is missing."""


def library_path() -> Path:
    """The coder's shared library for this platform."""
    return KERNELS / "rans" / f"_rans_cpu.{sysconfig.get_platform()}.so"


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


def _escape(path: Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def ninja_text(sources: dict[Path, str], folder: Path, output: Path, flags: str, link_flags: str) -> str:
    """build.ninja for one output of these sources, each with its extra flags; objects go to `folder`."""
    lines = [
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
        "  command = $cxx $ldflags -o $out.new $in && mv -f $out.new $out",
        "  description = link $out",
        "",
    ]
    objects = []
    for source, isa in sources.items():
        target = _escape(folder / f"{source.stem}.o")
        lines += [f"build {target}: cxx {_escape(source)}", f"  isa = {isa}"]
        objects.append(target)
    lines += ["", f"build {_escape(output)}: link {' '.join(objects)}", "", f"default {_escape(output)}", ""]
    return "\n".join(lines)


def _run(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "build.ninja"
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    subprocess.run([*ninja(), "--quiet", "-C", str(folder)], check=True)


def build() -> Path:
    """Builds what is out of date and returns the library's path."""
    sources = {KERNELS / source: isa for source, isa in rans_sources().items()}
    # The new library replaces the old one in one step: a process that has it loaded keeps its own.
    _run(BUILD, ninja_text(sources, BUILD, library_path(), "-O3", "-shared -Wl,-z,defs"))
    return library_path()


def build_program(name: str, sources: dict[Path, str], flags: str) -> Path:
    """Builds a test's program from these sources, with the kernels' headers at hand, and returns its path."""
    folder = BUILD.parent / name
    _run(folder, ninja_text(sources, folder, folder / name, f"{flags} -I{_escape(KERNELS / 'rans')}", flags))
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
