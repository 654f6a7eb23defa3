"""Settings for all tests."""

import os
import signal
from pathlib import Path

from hypothesis import settings

# Triton looks at this when a kernel is defined: all of a process's kernels are interpreted, or none. Where there is a
# GPU they are compiled.
if not Path("/dev/nvidia0").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Machines are shared and slow at times; a test that takes long is not thereby wrong.
settings.register_profile("kvload", deadline=None)
settings.load_profile("kvload")

# A shell without job control starts what it runs in the background with interrupts ignored, and children inherit that:
# the tests that interrupt a process would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
