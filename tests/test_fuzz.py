"""A bounded part of ``make fuzz``: whatever is answered becomes a status, and whatever happened to a folder is said."""

from pathlib import Path

from kvload.scripts import damage
from kvload.scripts.fuzz import run


def test_no_answer_raises() -> None:
    outcomes, raised = run(1500, seed=7)
    assert raised == []
    # the answers are of many kinds: not one road alone is tried
    assert len(outcomes) > 12
    assert outcomes["ok"] > 20


def test_no_damage_to_a_run_folder_raises(tmp_path: Path) -> None:
    statuses = set()
    wrong = []
    for name, command, status, said in damage.outcomes(tmp_path):
        statuses.add(status)
        if damage.wrong(status, said):
            wrong.append((name, command, status, said[-300:]))
    assert wrong == []
    assert len(damage.kinds()) >= 54
    # some folders can still be read, some not: both roads are tried
    assert {0, 2} <= statuses
