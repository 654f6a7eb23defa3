"""SLO attainment against cases written out by hand."""

from pathlib import Path

import numpy as np
import pytest

from kvload.analysis.records.loading import load
from kvload.analysis.run import slo
from tests.analysis.synthetic import answer, failure, write


def test_failures_miss_and_so_does_what_was_not_measured(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write(
        tmp_path / "run",
        [
            answer(rng, 0, tokens=20, ttft_s=0.1, tpot_s=0.01),  # meets both
            answer(rng, 1, tokens=20, ttft_s=0.3, tpot_s=0.01),  # late first token
            answer(rng, 2, tokens=20, ttft_s=0.1, tpot_s=0.2),  # slow
            answer(rng, 3, tokens=1, ttft_s=0.1),  # no TPOT: its limit is met
            answer(rng, 4, tokens=0, ttft_s=0.1),  # an empty answer has no first token
            failure(rng, 5, "failed", "reset"),
            failure(rng, 6, "timeout", "timeout"),
            failure(rng, 7, "censored", "cut"),
            failure(rng, 8, "unsent", "too_long"),
        ],
    )
    found = slo.attainment(load(run), {"ttft": 0.2, "tpot": 0.05}, 2.0)
    assert (found.met, found.sent) == (2, 8)
    assert found.by_metric["ttft"].estimate == 3 / 8
    assert found.by_metric["tpot"].estimate == 3 / 8
    assert found.goodput_rps == 1.0
    assert found.goodput_tokens_per_s == (20 + 1) / 2


def test_a_tpot_that_was_not_measured_is_missed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write(tmp_path / "run", [answer(rng, 0, tokens=20, output_tokens=None, output_tokens_source=None)])
    assert slo.attainment(load(run), {"tpot": 10.0}, 1.0).met == 0


def test_percentile_limits_are_judged_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write(tmp_path / "run", [answer(rng, i, tokens=5, ttft_s=0.1 if i else 9.0) for i in range(1000)])
    found = slo.attainment(load(run), {"p99_ttft": 0.2, "p99_9_ttft": 0.2, "ttft": 10.0}, 1.0)
    assert found.met == 1000
    assert [limit.met for limit in found.percentiles] == [True, True]
    assert slo.attainment(load(run), {"p99_9_ttft": 0.05}, 1.0).percentiles[0].met is False


def test_attainment_grows_with_the_scale_of_its_limits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = write(tmp_path / "run", [answer(rng, i, tokens=5) for i in range(100)])
    curve = slo.attainment_over_scale(load(run), {"ttft": 0.1}, [0.1, 0.5, 1.0, 2.0, 100.0])
    for scale, share in curve:
        assert share == slo.attainment(load(run), {"ttft": 0.1 * scale}, 1.0).share.estimate
    shares = [share for _, share in curve if share is not None]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_requests_without_an_answer_are_slower_than_any_limit_on_a_percentile(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    quick = [answer(rng, n, tokens=5, ttft_s=0.1) for n in range(95)]
    run = write(tmp_path / "run", [*quick, *(failure(rng, n, "failed", "reset") for n in range(95, 100))])
    p90, p99 = slo.percentile_limits(load(run), {"p90_ttft": 0.2, "p99_ttft": 0.2, "ttft": 0.2})
    assert (p90.name, p90.met) == ("p90_ttft", True)
    assert p90.measured_s == pytest.approx(0.1)
    assert (p99.name, p99.met, p99.measured_s) == ("p99_ttft", False, None)
