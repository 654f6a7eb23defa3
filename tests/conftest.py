"""Settings for all tests."""

import os
import signal
from pathlib import Path

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
settings.register_profile("kvload", deadline=None)
settings.load_profile("kvload")

# A shell without job control starts what it runs in the background with interrupts ignored, nohup with the end of the
# session ignored, and children inherit that: the tests that send such a signal would wait for nothing.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run the tests (``--dist loadgroup``), say which may part and which come first.

    The tests of a file stay together, since they share what the file imports and builds. Slow ones part, unless they
    share a server or an archive: they wait more than they compute, and begun first they hold up nothing at the end.
    """
    if not hasattr(config, "workerinput"):
        return
    for item in items:
        if shares_something(item) or not is_slow(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))
    items.sort(key=lambda item: not is_slow(item))


def is_slow(item: pytest.Item) -> bool:
    return item.get_closest_marker("slow") is not None


def shares_something(item: pytest.Item) -> bool:
    """Whether a fixture of the test is built once for all tests of its file."""
    assert isinstance(item, pytest.Function)
    found = item._fixtureinfo.name2fixturedefs.values()
    return any(fixture.scope == "module" for fixtures in found for fixture in fixtures)
