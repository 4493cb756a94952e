"""CompressAI's own tests of its coder, entropy models, models and codecs, with our coder installed.

    python tests/compressai_suite.py [compatible|native] [pytest's arguments]

The tests come from CompressAI's source distribution of the version that is installed here, which pip downloads to a
temporary folder. Where it cannot be had, the script says so and ends with 0: nothing failed. It takes minutes, so it
is not part of `make test`. (Its tests of latent codecs are not in the distribution.)
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = (
    "test_coder.py",
    "test_entropy_models.py",
    "test_entropy_models_vbr.py",
    "test_models.py",
    "test_waseda.py",
    "test_codec.py",
)


def fetch(folder: Path) -> Path | str:
    """The folder of CompressAI's tests, or why there is none."""
    try:
        version = importlib.metadata.version("compressai")
    except importlib.metadata.PackageNotFoundError:
        return "CompressAI is not installed: `make bench` installs it"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "compressai"]
    pip = subprocess.run(
        [*command, f"compressai=={version}", "--dest", str(folder)], capture_output=True, text=True, check=False
    )
    archives = list(folder.glob("*.tar.gz"))
    if pip.returncode or not archives:
        return f"the source distribution of CompressAI {version} cannot be had: {pip.stderr.strip()[-300:]}"
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    tests = next(folder.glob("*/tests"), None)
    return tests or f"the source distribution of CompressAI {version} holds no tests"


def main(arguments: list[str]) -> int:
    mode = arguments.pop(0) if arguments and arguments[0] in ("compatible", "native") else "compatible"
    with tempfile.TemporaryDirectory() as temporary:
        tests = fetch(Path(temporary))
        if isinstance(tests, str):
            print(f"skipped: {tests}")
            return 0
        files = [name for name in FILES if (tests / name).exists()]
        environment = {
            **os.environ,
            "FASTCODEC_MODE": mode,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]),
        }
        # Not in the distribution's folder: its own package, without the compiled part, would be imported from there.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            os.devnull,
            "-p",
            "compressai_plugin",
            "-p",
            "no:cacheprovider",
        ]
        command += ["-q", "-rs", "--disable-warnings", f"--rootdir={tests}", *(str(tests / name) for name in files)]
        return subprocess.run([*command, *arguments], cwd=tests, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
