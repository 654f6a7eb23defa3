"""Arms that took unlike shares of their prompts from the prefix cache: the comparison says so."""

from pathlib import Path

import numpy as np
import pytest

from kvload.analysis.comparison.compare import compare
from kvload.analysis.records.pairs import ArmRuns
from kvload.records import ServerInfo
from kvload.rundir import RunDir
from tests.analysis.synthetic import answer, write

COUNT = 40


def run_of(path: Path, cached: int | None) -> RunDir:
    rng = np.random.default_rng(1)
    made = [
        answer(rng, index, tokens=20, prompt_tokens=100, input_tokens=100, cached_tokens=cached)
        for index in range(COUNT)
    ]
    return write(path, made, servers=[ServerInfo(url="http://127.0.0.1:1", engine="vllm", prefix_cache="reset")])


def notes(folder: Path, base: int | None, again: int | None, other: int | None) -> list[str]:
    found = compare(
        [
            ArmRuns("none", (run_of(folder / "none", base),), baseline=True),
            ArmRuns("none (again)", (run_of(folder / "again", again),), floor=True),
            ArmRuns("int4", (run_of(folder / "int4", other),)),
        ]
    )
    return [note for note in found.notes if "prefix cache" in note]


@pytest.mark.parametrize(("other", "unlike"), [(41, False), (70, True)])
def test_shares_are_told_and_unlike_ones_named_as_a_difference(tmp_path: Path, other: int, unlike: bool) -> None:
    (note,) = notes(tmp_path, 40, 40, other)
    assert "none 40" in note
    assert f"int4 {other}" in note
    assert ("did not compute the same prompts" in note) is unlike


def test_nothing_is_said_where_nothing_was_cached_or_nobody_tells(tmp_path: Path) -> None:
    assert notes(tmp_path / "zero", 0, 0, 0) == []
    assert notes(tmp_path / "silent", None, None, None) == []


def test_an_arm_that_does_not_tell_is_unknown_and_not_unlike(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, 40, 40, None)
    assert "int4 unknown" in note
    assert "did not compute" not in note
