"""Settings for all tests."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Triton looks at this when a kernel is defined: all of a process's kernels are interpreted, or none. Where there is a
# GPU they are compiled.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Steps are small here, and tests run beside each other: threads would wait for each other's processors, up to 60 times
# as long as the work takes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Machines are shared and slow at times; a test that takes long is not thereby wrong.
settings.register_profile("kvload", deadline=None, derandomize=True)
# Cases that nobody has tried, and ten times as many: make test-explore.
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("KVLOAD_CASES", "kvload"))

# A shell without job control starts what it runs in the background with interrupts ignored, nohup with the end of the
# session ignored, and children inherit that: the tests that send such a signal would wait for nothing.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


PARTED = frozenset(
    f"tests/{name}.py"
    for name in (
        "experiment/test_beside",
        "experiment/test_failing_arms",
        "workloads/run/test_faults_of_processes",
        "workloads/run/test_replay",
    )
)
"""Long files whose tests share nothing: where several processes run the tests, each goes where there is room."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run the tests, slow ones come first.

    They wait more than they compute: begun first, beside each other, they hold up nothing at the end.
    """
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As ``--dist loadfile`` does it, so that the tests of a file share what it builds, but for files that part."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

    class ByFile(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", maxsplit=1)[0]
            return nodeid if file in PARTED else file

    return ByFile(config, log)
