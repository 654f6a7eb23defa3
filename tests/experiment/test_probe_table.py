"""The table of methods and what they do to the probe model's answers, from a comparison as it is written."""

from typing import Any

from kvload.scripts.probe_table import table


def arm(name: str, *, baseline: bool = False, answered: int = 4, tokens: float = 10.0) -> dict[str, Any]:
    return {
        "name": name,
        "baseline": baseline,
        "sent": 4,
        "answered": answered,
        "info": {"bytes_per_token": 2048},
        "output_tokens": {"estimate": tokens},
    }


def scores(base: float, arm_mean: float) -> dict[str, Any]:
    return {
        "tasks": [{"task": "recall", "base_mean": base, "arm_mean": arm_mean}],
        "overall": {"base_mean": base, "arm_mean": arm_mean},
    }


def test_each_arm_has_its_scores_its_lengths_and_how_many_it_answered() -> None:
    comparison = {
        "arms": [arm("none", baseline=True), arm("int4", answered=3, tokens=12.5)],
        "quality": {"arms": {"int4": scores(1.0, 0.5)}},
        "comparisons": [{"name": "int4", "lengths": {"shrunk": {"estimate": 0.1}, "grown": {"estimate": 0.15}}}],
    }
    header, _, base, compressed = (
        [cell.strip() for cell in row.split("|")[1:-1]] for row in table(comparison).split("\n")
    )
    assert header == ["method", "bytes/token", "answered", "recall", "all", "mean tokens", "abs(D) >= 50 %"]
    assert base == ["none", "2,048", "4/4", "1.00", "1.000", "10.0", ""]
    assert compressed == ["int4", "2,048", "3/4", "0.50", "0.500", "12.5", "25%"]
