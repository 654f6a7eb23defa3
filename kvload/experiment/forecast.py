"""How long a series of steps still takes, told from how long the ones before it took."""

import time
from collections.abc import Callable, Sequence


class Forecast:
    """Time left of steps that are made one after the other.

    Every step has an estimate made beforehand. What the finished ones took beyond theirs (slower starts, last answers)
    is expected of the others in proportion.

    Args:
        estimates_s: of every step, in their order; :meth:`expect` changes what is still to come.
        clock: seconds, monotonic.
    """

    def __init__(self, estimates_s: Sequence[float], clock: Callable[[], float] = time.monotonic) -> None:
        self._left = list(estimates_s)
        self._clock = clock
        self._since = clock()
        self._planned_s = 0.0
        self._taken_s = 0.0
        self._current: float | None = None

    def begin(self, estimate_s: float | None = None) -> None:
        """The next step begins; with an estimate of its own where more is known by now."""
        planned = self._left.pop(0) if self._left else 0.0
        self._current = planned if estimate_s is None else estimate_s
        self._since = self._clock()

    def end(self) -> None:
        """The step that began is done."""
        if self._current is not None:
            self._planned_s += self._current
            self._taken_s += self._clock() - self._since
            self._current = None

    def expect(self, estimates_s: Sequence[float]) -> None:
        """What is still to come after the current step, in place of what was thought."""
        self._left = list(estimates_s)

    @property
    def left_s(self) -> float:
        """Seconds until the last step ends."""
        pace = self._taken_s / self._planned_s if self._planned_s > 0 else 1.0
        current = 0.0
        if self._current is not None:
            current = max(self._current * pace - (self._clock() - self._since), 0.0)
        return current + pace * sum(self._left)

    @property
    def total_s(self) -> float:
        """Seconds that all steps take, the finished ones and the current one among them."""
        current = 0.0 if self._current is None else self._clock() - self._since
        return self._taken_s + current + self.left_s

    @property
    def taken_s(self) -> float:
        """Seconds that finished steps took."""
        return self._taken_s


def left_text(forecast: Forecast) -> str:
    """``1 min 10 s left of about 4 min``."""
    return f"{time_text(forecast.left_s)} left of about {time_text(forecast.total_s)}"


def time_text(seconds: float) -> str:
    """``50 s``, ``1 min 10 s``, ``2 h 5 min``: as exact as a forecast can be."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    if whole < 3600:
        minutes, rest = divmod(round(whole / 10) * 10, 60)
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{round(whole / 60)} min"
    hours, rest = divmod(round(whole / 60), 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
