"""Ctrl-C and orders to end while servers are started and stopped: heeded where one waits, kept back where one acts.

An interrupt in the middle of an act would leave a process that no entry names, or a server half stopped.
"""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """The interrupts that came within :func:`kept_back`."""

    def __init__(self) -> None:
        self._came = False
        self._heeded = False
        self._settled = False

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Let an interrupt end what is done here, one that came before, too.

        Raises:
            KeyboardInterrupt: there was one.
        """
        self._heeded = True
        try:
            self._raise_if_came()
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

    def settle(self) -> None:
        """What was begun is done, and stays: an interrupt from here on comes too late.

        Raises:
            KeyboardInterrupt: one came before: it can still be undone.
        """
        self._settled = True
        try:
            self._raise_if_came()
        except KeyboardInterrupt:
            self._settled = False
            raise

    @property
    def is_left(self) -> bool:
        """Whether one came that nobody has heeded."""
        return self._came and not self._settled

    def _raise_if_came(self) -> None:
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        if self._heeded:
            self._heeded = False
            raise KeyboardInterrupt
        self._came = True


@contextlib.contextmanager
def kept_back() -> Iterator[Interrupts]:
    """Keep Ctrl-C, SIGTERM and SIGHUP back, but where :meth:`Interrupts.heeded` lets them in.

    In the main thread alone: others get no signals. Whoever handles Ctrl-C in a way of their own goes on to do so, and
    what is ignored (SIGHUP under ``nohup``) stays so. Within another ``kept_back`` it is that one that keeps them.

    Raises:
        KeyboardInterrupt: at the end, where one came that was never heeded.
    """
    if threading.current_thread() is not threading.main_thread():
        yield Interrupts()
        return
    outer = [getattr(signal.getsignal(number), "__self__", None) for number in _NUMBERS]
    if (held := next((one for one in outer if isinstance(one, Interrupts)), None)) is not None:
        yield held
        return
    interrupts = Interrupts()
    numbers = [number for number in _NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        numbers = [number for number in numbers if number != signal.SIGINT]
    before = {number: signal.signal(number, interrupts._note) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupts.is_left:
        raise KeyboardInterrupt
