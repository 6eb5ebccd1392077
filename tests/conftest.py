"""Shared by all Python tests: where the build and its data are. `make test` sets the variables; by hand, build/ is assumed."""

import os
import pathlib
import signal
import subprocess

import pytest

# A shell starts background jobs with SIGINT ignored, which the programs under test would inherit; tests of interruption would then wait in vain.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SOURCE = pathlib.Path(__file__).resolve().parent.parent
BUILD = pathlib.Path(os.environ.get("QR_BUILD") or SOURCE / "build")
DATA = pathlib.Path(os.environ.get("QR_TEST_DATA") or SOURCE / "build" / "testdata")
PROGRAM = pathlib.Path(os.environ.get("QR_PROGRAM") or BUILD / "qwen-rerank")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: about speed, volume or installing; left out of sanitizer runs")
    config.addinivalue_line("markers", "golden: compares scores with the reference; also run on emulated arm64")


def pytest_report_header(config):
    return f"build: {BUILD}, data: {DATA}"


@pytest.fixture(scope="session")
def source():
    return SOURCE


@pytest.fixture(scope="session")
def build():
    return BUILD


@pytest.fixture(scope="session")
def testdata():
    return DATA


@pytest.fixture(scope="session")
def program():
    return PROGRAM


@pytest.fixture(scope="session")
def sanitized(build):
    """True in a sanitizer build, whose libraries other programs cannot simply load."""
    cache = (build / "CMakeCache.txt").read_text()
    return any(line.startswith("SAN:") and line.split("=", 1)[1] for line in cache.splitlines())


@pytest.fixture(scope="session")
def run():
    """Runs a command to its end and returns it; fails the test with the output if the command fails."""

    def run(*command, **kwargs):
        done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL, **kwargs)
        assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
        return done

    return run
