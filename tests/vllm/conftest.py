"""The real vLLM's tests run only where they are asked for: ``pytest -m vllm``, as ``make test-vllm`` does."""

import pytest


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "vllm" in config.getoption("markexpr"):
        return
    ours = [item for item in items if item.get_closest_marker("vllm")]
    if ours:
        config.hook.pytest_deselected(items=ours)
        items[:] = [item for item in items if item not in ours]
