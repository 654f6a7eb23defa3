"""A bounded part of ``make fuzz``: whatever is answered becomes a status."""

from kvload.scripts.fuzz import run


def test_no_answer_raises() -> None:
    outcomes, raised = run(1500, seed=7)
    assert raised == []
    # the answers are of many kinds: not one road alone is tried
    assert len(outcomes) > 12
    assert outcomes["ok"] > 20
