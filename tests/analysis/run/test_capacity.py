"""The search for the highest rate that meets the target, on servers of known capacity."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.analysis.run.capacity import Attempt, capacity, next_rate, search


@given(st.floats(0.1, 500), st.floats(0.01, 100))
def test_it_finds_the_capacity_of_a_sharp_server(limit: float, ratio: float) -> None:
    start = limit * ratio
    found = search(lambda r: Attempt(rate_rps=r, sent=1000, met=1000 if r <= limit else 500), start_rps=start, most=40)
    assert found.rate_rps.estimate is not None
    assert limit / 1.05 <= found.rate_rps.estimate <= limit
    assert found.rate_rps.low == found.rate_rps.estimate
    assert found.rate_rps.high is not None
    assert limit < found.rate_rps.high <= limit * 1.05


def test_the_interval_holds_the_capacity_of_a_noisy_server() -> None:
    # A server that answers in time with probability 1 - (rate / 100)^4: 99 % at 31.6 requests a second.
    held = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)

        def attempt(rate: float, rng: np.random.Generator = rng) -> Attempt:
            good = max(0.0, 1 - (rate / 100) ** 4)
            return Attempt(rate_rps=rate, sent=2000, met=int(rng.binomial(2000, good)))

        found = search(attempt, start_rps=5).rate_rps
        held += (found.low is None or found.low <= 31.6) and (found.high is None or found.high >= 31.6)
    assert held >= 90


def test_too_few_requests_prove_nothing() -> None:
    found = capacity([Attempt(rate_rps=10, sent=50, met=50)]).rate_rps
    assert (found.estimate, found.low, found.high) == (10, None, None)


def test_contradicting_neighbours_are_pooled() -> None:
    attempts = [Attempt(rate_rps=r, sent=1000, met=m) for r, m in ((10, 985), (20, 1000), (40, 500))]
    assert capacity(attempts).rate_rps.estimate == 20  # 10 and 20 together: 99.25 %


def test_a_server_that_never_meets_the_target_ends_the_search() -> None:
    found = search(lambda r: Attempt(rate_rps=r, sent=100, met=0), start_rps=8, most=50)
    assert found.rate_rps.estimate is None
    assert len(found.attempts) < 20


def test_the_search_starts_where_it_is_told() -> None:
    assert next_rate([], start_rps=7.0) == pytest.approx(7.0)
