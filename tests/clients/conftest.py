import logging
import pathlib
import sys

import pytest

logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # some clients leave sessions open, and it says so at the end

sys.path.insert(0, str(pathlib.Path(__file__).parent))
pytest.register_assert_rewrite("contract")
from support import KEY, MOST_DOCUMENTS, running, wait_until_ready  # noqa: E402


@pytest.fixture(scope="session")
def url():
    """A server that lets everybody in."""
    with running("--model", "builtin") as url:
        wait_until_ready(url)
        yield url


@pytest.fixture(scope="session")
def strict():
    """A server with a key and small limits."""
    with running("--model", "builtin", "--api-key", KEY, "--max-documents", str(MOST_DOCUMENTS), "--max-body", "1") as url:
        wait_until_ready(url)
        yield url


def pytest_generate_tests(metafunc):
    if "client" in metafunc.fixturenames:
        metafunc.parametrize("client", metafunc.module.CLIENTS, ids=lambda client: client.name)
