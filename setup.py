"""Packaging: the C++ library is built before anything is packaged, and kernels/ is installed as fastcodec.kernels.

All other metadata stands in pyproject.toml.
"""

import re
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def version() -> str:
    """The literal `__version__` of fastcodec/__init__.py, read without importing it (that would need PyTorch)."""
    text = (ROOT / "fastcodec" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, flags=re.MULTILINE)
    if match is None:
        raise SystemExit('setup.py: fastcodec/__init__.py lacks its line __version__ = "..."')
    return match[1]


class BuildLibraryAndPackages(build_py):
    """Builds the shared library beside its sources, then copies (or, for an editable install, links) the packages."""

    def run(self) -> None:
        subprocess.run([sys.executable, "kernels/build.py"], cwd=ROOT, check=True)
        super().run()


class PlatformDistribution(Distribution):
    """A wheel holds a shared library, so it belongs to one platform ..."""

    def has_ext_modules(self) -> bool:
        return True


class AnyPythonWheel(bdist_wheel):
    """... but to no one version of Python: the library has a plain C interface, called through ctypes."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    version=version(),
    distclass=PlatformDistribution,
    cmdclass={"build_py": BuildLibraryAndPackages, "bdist_wheel": AnyPythonWheel},
    package_dir={"fastcodec": "fastcodec", "fastcodec.kernels": "kernels"},
    packages=[
        *find_packages(include=["fastcodec", "fastcodec.*"]),
        "fastcodec.kernels",
        *(f"fastcodec.kernels.{name}" for name in find_packages("kernels")),
    ],
    include_package_data=False,
    package_data={
        "fastcodec": ["py.typed", "**/*.npz", "**/*.safetensors", "**/*.bin", "**/*.json"],
        # The sources too: the CUDA kernels are compiled where they run.
        "fastcodec.kernels": [f"**/*.{suffix}" for suffix in ("so", "fatbin", "h", "hpp", "cuh", "cpp", "cu")],
    },
    zip_safe=False,
)
