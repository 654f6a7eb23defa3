"""The real model's tests run only where they are asked for: ``pytest -m real``, as ``make test-real`` does."""

from pathlib import Path

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "real" in config.getoption("markexpr"):
        return
    ours = [item for item in items if item.get_closest_marker("real")]
    if ours:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The folder of SmolLM2-135M-Instruct, fetched and converted where it is not there yet."""
    from kvload.scripts.real_model import make

    return make()
