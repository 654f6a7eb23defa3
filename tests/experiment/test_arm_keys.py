"""Keys of single arms: whose server gets which."""

from pathlib import Path
from typing import Any

import pytest

from kvload.cli.options import SendingFlags
from kvload.cli.readings import read_arm_keys, read_headers
from kvload.errors import UsageError
from kvload.experiment import run as runs
from kvload.experiment.plan import ExperimentPlan, make_arms
from kvload.experiment.run import Sent, Watcher, run_all


def test_each_arm_gets_its_own_key_and_the_floor_its_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, dict[str, str]] = {}

    class Ended:
        def manifest(self) -> Any:
            return type("Manifest", (), {"ended": "completed", "partial": False, "sent": 0, "failures": []})

    def note(options: Any, _: Any) -> Ended:
        sent[options.arm] = dict(options.headers)
        return Ended()

    monkeypatch.setattr(runs, "replay_once", note)
    arms = make_arms([], {"a": "http://127.0.0.1:1", "b": "http://127.0.0.1:2"})
    plan = ExperimentPlan(trace=str(tmp_path / "t"), trace_sha256="0", arms=arms, repeats=1)
    monkeypatch.setenv("KEY_OF_A", "alpha")
    keys = read_arm_keys(["a=KEY_OF_A"], [arm.name for arm in arms])
    (tmp_path / "out").mkdir()
    run_all(plan, tmp_path / "out", Watcher(), Sent({"authorization": "Bearer common", "X": "1"}, keys))
    assert sent == {
        "a": {"X": "1", "Authorization": "Bearer alpha"},
        "a (again)": {"X": "1", "Authorization": "Bearer alpha"},
        "b": {"authorization": "Bearer common", "X": "1"},
    }


@pytest.mark.parametrize("text", ["a", "=KEY", "a=", "c=KEY_OF_A", "a=NOT_SET_ANYWHERE"])
def test_what_is_no_key_of_an_arm(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY_OF_A", "alpha")
    with pytest.raises(UsageError) as caught:
        read_arm_keys([text], ["a", "b"])
    assert "--arm-key" in str(caught.value)


def test_the_flag_wins_over_a_header_of_any_case() -> None:
    flags = SendingFlags(header=["authorization: Bearer old", "X: 1"], api_key="new")
    assert read_headers(flags) == {"X": "1", "Authorization": "Bearer new"}
