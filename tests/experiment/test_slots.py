"""Places of runs: GPUs and processors shared out, and runs spread over them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import UsageError
from kvload.experiment.slots import make_slots, may_move, remarks, room_slots, split_cpus, spread
from kvload.servers.lifecycle.places import Room


def test_gpus_are_taken_in_order_and_a_rest_is_left_over() -> None:
    found = make_slots(("0", "2", "3", "5", "7"), 2, range(16), 1)
    assert [slot.gpus for slot in found] == [("0", "2"), ("3", "5")]
    assert [slot.name for slot in found] == ["GPUs 0,2", "GPUs 3,5"]
    with pytest.raises(UsageError, match="takes 4 GPUs"):
        make_slots(("0", "1"), 4, range(16), 1)


@given(st.sets(st.integers(0, 200), min_size=1, max_size=64), st.integers(1, 8), st.integers(1, 8))
def test_no_processor_serves_two(cpus: set[int], slots: int, workers: int) -> None:
    parts = split_cpus(sorted(cpus), slots, workers)
    if parts is None:
        assert len(cpus) // slots < 2
        return
    every = [cpu for server, client in parts for cpu in (*server, *client)]
    assert len(every) == len(set(every))
    assert set(every) <= cpus
    assert all(server and client for server, client in parts)
    assert len({(len(server), len(client)) for server, client in parts}) == 1  # every arm has as many


@given(arms=st.integers(3, 9), slots=st.integers(2, 8), repeats=st.integers(2, 5))
def test_no_arm_always_has_the_same_gpu_and_equal_arms_are_apart(arms: int, slots: int, repeats: int) -> None:
    """Arms 0 and 1 are the A/A pair, in the order that plans have: one of them first, the other last."""
    runs = []
    for repeat in range(repeats):
        between = list(range(2, arms))
        turned = between[repeat % len(between) :] + between[: repeat % len(between)]
        first, last = (0, 1) if repeat % 2 == 0 else (1, 0)
        runs += [(arm, repeat) for arm in (first, *turned, last)]
    apart = {(0, repeat): (1, repeat) for repeat in range(repeats)}
    apart |= {other: run for run, other in apart.items()}
    queues = spread(runs, slots, arm_of={run: run[0] for run in runs}, apart=apart)
    assert sorted(run for queue in queues for run in queue) == sorted(runs)
    place = {run: number for number, queue in enumerate(queues) for run in queue}
    for arm in range(arms):
        used = [place[arm, repeat] for repeat in range(repeats)]
        counts = [used.count(slot) for slot in range(slots)]
        assert max(counts) - min(counts) <= 1  # as even as it can be
    assert place[0, 0] != place[1, 0]
    order = {run: number for number, run in enumerate(runs)}
    assert all(list(queue) == sorted(queue, key=order.__getitem__) for queue in queues)


def test_a_run_moves_only_where_its_arm_has_been_less_often() -> None:
    at = {("a", 0): 0, ("a", 1): 1, ("b", 0): 0, ("b", 1): 0}
    arm_of = {run: run[0] for run in at}
    assert may_move(("a", 1), 1, 2, at=at, arm_of=arm_of)
    assert not may_move(("a", 1), 1, 0, at=at, arm_of=arm_of)
    assert may_move(("b", 1), 0, 1, at=at, arm_of=arm_of)


def test_what_was_done_before_counts() -> None:
    runs = [("a", 1), ("b", 1)]
    queues = spread(runs, 2, arm_of={run: run[0] for run in runs}, before={("a", 0): 1, ("b", 1): 1})
    assert queues == [[("b", 1)], [("a", 1)]]


def test_what_is_left_over_and_what_differs_is_said() -> None:
    three = make_slots(("0", "1", "2", "3"), 3, range(64), 1)
    assert [slot.gpus for slot in three] == [("0", "1", "2")]
    assert "GPU 3 stays unused: a server takes 3" in remarks(three, ("0", "1", "2", "3"), 3)
    kinds = {"0": "H100", "1": "H100", "2": "A100"}
    alike = make_slots(("0", "1"), 1, range(64), 1, kinds)
    assert not any("kind" in said for said in remarks(alike, ("0", "1"), 1))
    unlike = remarks(make_slots(("0", "1", "2"), 1, range(64), 1, kinds), ("0", "1", "2"), 1)
    assert unlike[0].startswith("the GPUs are not of one kind (GPU 0, GPU 1: H100; GPU 2: A100)")
    assert "3 repeats (or 2, 3 ... times as many) put each arm on each as often" in unlike[0]
    mixed = make_slots(("0", "2"), 2, range(64), 1, kinds)
    assert mixed[0].kind == "H100 and A100"
    unknown = make_slots(("0", "5"), 1, range(64), 1, kinds)
    assert [slot.kind for slot in unknown] == ["H100", None]


def test_what_of_a_cluster_is_not_used_is_said() -> None:
    without = room_slots([Room("a", "node A", 0), Room("b", "node B", 0)])
    assert remarks(without, (), 1) == []
    (said,) = remarks(without, (), 2)
    assert said == "the cluster's nodes have no GPUs: each takes one server at a time, and --per-arm 2 says nothing"
    rooms = [Room("a", "node A place 0", 2, "H100", left=1), Room("a", "node A place 1", 2, "H100")]
    assert remarks(room_slots(rooms), (), 2) == ["1 GPU stays unused on node A: a server takes 2"]
    rooms.append(Room("b", "node B", 2, "A100"))
    assert "node A place 0, node A place 1: H100; node B: A100" in remarks(room_slots(rooms), (), 2)[0]
