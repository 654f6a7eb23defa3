"""Which of several servers gets a request."""

import pytest

from kvload.balancing import Balancer, policy_of
from kvload.errors import UsageError


def no_loads() -> list[int]:
    raise AssertionError("this policy does not ask")


def test_round_robin_takes_the_next_whatever_the_session() -> None:
    balancer = Balancer("round-robin", 3)
    assert [balancer.choose("same", no_loads) for _ in range(5)] == [0, 1, 2, 0, 1]


def test_least_loaded_takes_one_with_the_fewest_and_of_several_the_one_chosen_longest_ago() -> None:
    balancer = Balancer("least-loaded", 3)
    assert balancer.choose(None, lambda: [2, 1, 1]) == 1
    assert balancer.choose("s", lambda: [0, 0, 0]) == 0
    assert balancer.choose("s", lambda: [0, 0, 0]) == 2
    assert [balancer.choose("s", lambda: [0, 0, 0]) for _ in range(4)] == [1, 0, 2, 1]
    assert balancer.choose("s", lambda: [0, 0, 5]) == 0
    assert [balancer.choose("s", lambda: [0, 0, 5]) for _ in range(4)] == [1, 0, 1, 0]


def test_sessions_stay_and_come_in_turn() -> None:
    balancer = Balancer("sticky", 2)
    asked = ["a", "b", "a", "c", "b", None, None, "a"]
    assert [balancer.choose(session, no_loads) for session in asked] == [0, 1, 0, 0, 1, 1, 0, 0]


def test_what_is_no_policy() -> None:
    assert policy_of("sticky") == "sticky"
    with pytest.raises(UsageError, match="no policy"):
        policy_of("stickyy")
