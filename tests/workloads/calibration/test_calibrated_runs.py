"""Which runs calibrate their client by themselves."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvload.errors import ServerError
from kvload.experiment import replay
from kvload.experiment.options import ReplayOptions, RunOptions
from kvload.experiment.replay import Listener
from kvload.workloads.calibration import cache
from kvload.workloads.run.plan import Sending, Swarm
from tests.workloads.run.test_dispatch import plan

LONG = [float(number) for number in range(40)]


def calibrated(
    monkeypatch: pytest.MonkeyPatch,
    offsets: list[float],
    *,
    error: bool = False,
    elsewhere: bool = False,
    calibrate: bool | None = None,
) -> Any:
    asked: list[float] = []

    def measure(load: Any, *, workers: int, on_measure: Any) -> dict[str, Any]:
        if error:
            raise ServerError("the mock server did not start")
        on_measure()
        asked.append(load.rate)
        return {"rate": load.rate}

    monkeypatch.setattr(cache, "calibrate_once", measure)
    notices: list[str] = []
    sending = Sending(workers=0) if elsewhere else Sending()
    swarm = Swarm(master_host="127.0.0.1", remote_workers=1) if elsewhere else Swarm()
    options = ReplayOptions(trace=Path("t"), run=RunOptions(sending=sending, calibrate=calibrate), swarm=swarm)
    one = replay._OneReplay(options, Listener(on_notice=notices.append))
    schedule: Any = SimpleNamespace(planned=plan(offsets))
    return one._calibrate(schedule), notices


def test_long_runs_are_calibrated_and_short_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert calibrated(monkeypatch, LONG) == ({"rate": 1.0}, ["calibrating the client against the mock server"])
    assert calibrated(monkeypatch, LONG[:20]) == (None, [])
    assert calibrated(monkeypatch, LONG, calibrate=False) == (None, [])
    assert calibrated(monkeypatch, LONG[:20], calibrate=True)[0] == {"rate": 1.0}
    assert calibrated(monkeypatch, [], calibrate=True) == (None, [])
    assert calibrated(monkeypatch, LONG, elsewhere=True) == (None, [])


def test_a_calibration_that_fails_ends_only_a_run_that_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, notices = calibrated(monkeypatch, LONG, error=True)
    assert found is None
    assert notices == ["the client was not calibrated: the mock server did not start"]
    with pytest.raises(ServerError):
        calibrated(monkeypatch, LONG, error=True, calibrate=True)
