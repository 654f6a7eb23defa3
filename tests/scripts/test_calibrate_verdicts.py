"""The calibration in small: few false verdicts where nothing differs, true changes found. ``make calibrate-verdicts``
makes the whole table."""

import pytest

from kvload.scripts.calibrate_verdicts import Setting, decided_after_plan, queue_false_alarms, rates

SIMULATIONS = 120
CHANCE = 3 * (0.05 * 0.95 / SIMULATIONS) ** 0.5


@pytest.mark.parametrize("repeats", [1, 2, 3])
@pytest.mark.parametrize("drift", [0.0, 0.01, 0.02])
def test_one_equal_arm_is_rarely_called_better_or_worse(repeats: int, drift: float) -> None:
    found = rates(Setting(requests=200, repeats=repeats, drift=drift), simulations=SIMULATIONS, seed=1)
    for topic, share in found.any_false.items():
        assert share <= 0.05 + CHANCE, topic


def test_among_twelve_equal_arms_there_is_rarely_a_false_verdict() -> None:
    found = rates(Setting(requests=200, methods=12, drift=0.01), simulations=SIMULATIONS, seed=2)
    for topic, share in found.any_false.items():
        assert share <= 0.05 + CHANCE, topic


def test_five_per_cent_are_found_on_a_machine_that_drifts_by_one() -> None:
    found = rates(Setting(requests=200, faster=0.05), simulations=SIMULATIONS, topics=("latency",))
    assert found.lower["latency"] >= 0.93
    assert found.higher["latency"] == 0.0


@pytest.mark.parametrize("longer", [-0.05, 0.05])
def test_five_per_cent_of_length_are_found_in_both_directions(longer: float) -> None:
    found = rates(Setting(longer=longer), simulations=40, topics=("lengths",))
    assert (found.lower if longer < 0 else found.higher)["lengths"] >= 0.95


@pytest.mark.parametrize("cut", [0.4, 0.8, 0.95])
def test_answers_that_are_cut_off_are_never_called_as_long_as_before(cut: float) -> None:
    found = rates(Setting(requests=400, longer=0.2, cut=cut), simulations=40, topics=("lengths",))
    assert found.same["lengths"] == 0.0
    assert found.lower["lengths"] == 0.0


@pytest.mark.parametrize(("change", "repeats"), [(0.01, 3), (0.015, 2)])
def test_the_repeats_that_are_said_to_decide_do_in_four_of_five_cases(change: float, repeats: int) -> None:
    more, decided = decided_after_plan(change=change, noise=0.01, repeats=repeats, arms=4, simulations=4000)
    assert more is not None
    assert 0.78 <= decided <= 0.97


def test_requests_that_queue_give_no_more_false_verdicts() -> None:
    share = queue_false_alarms(load=0.9, drift=0.005, requests=200, repeats=3, simulations=SIMULATIONS)
    assert share <= 0.05 + CHANCE
