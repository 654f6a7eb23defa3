"""Time left, against a clock that the test turns."""

import pytest

from kvload.experiment.forecast import Forecast, time_text


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_left_is_what_was_planned_before_anything_is_known() -> None:
    assert Forecast([10, 20, 30], Clock()).left_s == 60


def test_slow_steps_make_the_others_slow() -> None:
    clock = Clock()
    forecast = Forecast([10, 20, 30], clock)
    forecast.begin()
    clock.now += 15
    forecast.end()
    assert forecast.left_s == pytest.approx(1.5 * 50)
    assert forecast.taken_s == 15


def test_the_current_step_runs_down_and_never_below_nothing() -> None:
    clock = Clock()
    forecast = Forecast([10, 20], clock)
    forecast.begin()
    clock.now += 4
    assert forecast.left_s == 26
    clock.now += 100
    assert forecast.left_s == 20


def test_what_is_learnt_replaces_what_was_thought() -> None:
    forecast = Forecast([10, 20, 30], Clock())
    forecast.begin(5)
    forecast.expect([7])
    assert forecast.left_s == 12


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (70, "70 s"),
        (131, "2 min 10 s"),
        (120, "2 min"),
        (1500, "25 min"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
    ],
)
def test_times_are_said_as_exactly_as_a_forecast_can_be(seconds: float, text: str) -> None:
    assert time_text(seconds) == text
