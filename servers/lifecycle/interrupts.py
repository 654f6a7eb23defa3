"""Ctrl-C and orders to end while servers are started and stopped: heeded where one waits, kept back where one acts.

An interrupt in the middle of an act would leave a process that no entry names, or a server half stopped.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType


class Interrupts:
    """The interrupts that came within :func:`kept_back`."""

    def __init__(self) -> None:
        self._came = False
        self._heeded = False

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Let an interrupt end what is done here, one that came before, too.

        Raises:
            KeyboardInterrupt: there was one.
        """
        self._heeded = True
        try:
            if self._came:
                raise KeyboardInterrupt
            yield
        finally:
            self._heeded = False

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            KeyboardInterrupt: there was an interrupt, before or meanwhile.
        """
        with self.heeded():
            time.sleep(seconds)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._heeded:
            self._heeded = False
            raise KeyboardInterrupt


@contextlib.contextmanager
def kept_back() -> Iterator[Interrupts]:
    """Keep Ctrl-C, SIGTERM and SIGHUP back, but where :meth:`Interrupts.heeded` lets them in.

    In the main thread alone: others get no signals. Whoever handles Ctrl-C in a way of their own goes on to do so.

    Raises:
        KeyboardInterrupt: at the end, where one came that was never heeded.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = [signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, interrupts._note) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupts._came:
        raise KeyboardInterrupt
