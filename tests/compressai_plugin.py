"""A pytest plugin for CompressAI's own tests: installs the adapter in $FASTCODEC_MODE before any of them is imported.

Tests that want released weights are skipped where these cannot be downloaded. See compressai_suite.py.
"""

import os
import urllib.error

import pytest

from bench import rivals
from fastcodec.adapters import compressai as adapter

rivals.load()
adapter.install(os.environ.get("FASTCODEC_MODE", "compatible"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    try:
        return (yield)
    except urllib.error.URLError as error:
        pytest.skip(f"CompressAI's weights cannot be had: {error}")


def pytest_terminal_summary(terminalreporter) -> None:
    assert adapter.active() is not None, "a test has undone the installation"
    terminalreporter.write_line(f"fastcodec.adapters.compressai: {adapter.active()}")
