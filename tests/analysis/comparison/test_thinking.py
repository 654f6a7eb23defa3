"""Reasoning and answer, each with its own length and its own wait."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kvload.analysis.comparison import thinking
from kvload.analysis.records.pairs import pair
from kvload.analysis.records.table import RecordTable
from kvload.analysis.run.section import Measured
from kvload.analysis.run.sections.reasoning import STATISTIC
from tests.analysis.arms_in_memory import answered, loaded
from tests.analysis.synthetic import manifest


def thought(table: RecordTable, thinking_tokens: int, answer_tokens: int) -> RecordTable:
    return dataclasses.replace(
        table,
        reasoning_tokens=np.full(len(table), float(thinking_tokens)),
        output_tokens=np.full(len(table), float(thinking_tokens + answer_tokens)),
        t_answer_s=table.t_send_s + 2.0,
        t_first_s=table.t_send_s + 0.5,
    )


def test_the_lengths_of_both_are_compared_apart(tmp_path: Path) -> None:
    table = answered(tmp_path, 30)
    base = loaded("none", thought(table, 100, 50), baseline=True)
    pairs = pair(base, loaded("kivi-2", thought(table, 150, 50)))
    (sentence,) = thinking.notes(pairs)
    assert "kivi-2: median D of the reasoning -50 %" in sentence
    assert "of the answer itself 0 %" in sentence
    assert thinking.notes(pair(loaded("none", table, baseline=True), loaded("x", table))) == []


def test_a_run_tells_both_waits(tmp_path: Path) -> None:
    table = thought(answered(tmp_path, 30), 100, 50)
    found = STATISTIC.measure(Measured(table=table, manifest=manifest(30), level=0.95, rng=np.random.default_rng(0)))
    assert found is not None
    estimate = {key: getattr(value, "estimate", value) for key, value in found.items()}
    assert estimate["ttft_p50"] == pytest.approx(0.5)
    assert estimate["ttfo_p50"] == pytest.approx(2.0)
    assert (estimate["thinking_tokens_p50"], estimate["answer_tokens_p50"], estimate["share"]) == (100, 50, 1)
