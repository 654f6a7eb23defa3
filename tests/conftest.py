"""Settings for all tests."""

import signal

from hypothesis import settings

# Machines are shared and slow at times; a test that takes long is not thereby wrong.
settings.register_profile("kvload", deadline=None)
settings.load_profile("kvload")

# A shell without job control starts what it runs in the background with interrupts ignored, and children inherit that:
# the tests that interrupt a process would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
