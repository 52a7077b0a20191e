"""Servers for real clients that know nothing of this project, and an environment that sends nothing anywhere else."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Before any client is imported: some of them look for newer versions and prices, or report what they are used for.
for _name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
    os.environ.pop(_name, None)
for _name in [name for name in os.environ if name.startswith(("OPENAI_", "LANGCHAIN_", "LANGSMITH_", "LITELLM_"))]:
    os.environ.pop(_name)
os.environ["NO_PROXY"] = "*"
os.environ["LANGCHAIN_TRACING_V2"] = os.environ["LANGSMITH_TRACING"] = "false"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LITELLM_TELEMETRY"] = "False"

from tests.clients.served import KEY, Running, serving  # noqa: E402  (the environment comes first)


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture(scope="session")
def guarded() -> Iterator[Running]:
    """Asks for a key, lets one request wait, reads small bodies only."""
    with serving(api_keys=(KEY,), max_waiting=1, max_body_bytes=100_000) as running:
        yield running
