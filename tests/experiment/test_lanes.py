"""Queues that are worked off side by side."""

import os
import signal
import threading

import pytest

from kvload.experiment.lanes import Lanes


def test_every_job_is_done_once_and_lanes_work_at_the_same_time() -> None:
    done: list[tuple[int, str]] = []
    both = threading.Barrier(2, timeout=20)

    def work(lane: int, job: str) -> bool:
        if job in {"a", "x"}:
            both.wait()
        done.append((lane, job))
        return True

    Lanes([["a", "b"], ["x", "y", "z"]], work).run()
    assert [job for lane, job in done if lane == 0] == ["a", "b"]
    assert [job for lane, job in done if lane == 1] == ["x", "y", "z"]


def test_a_lane_out_of_service_leaves_its_jobs_to_the_others() -> None:
    done: list[tuple[int, str]] = []

    def work(lane: int, job: str) -> bool:
        done.append((lane, job))
        return lane != 0

    Lanes([["a", "b", "c"], ["x"]], work).run()
    assert (0, "a") in done
    assert sorted(job for lane, job in done if lane == 1) == ["b", "c", "x"]


def test_a_lane_with_nothing_left_takes_what_waits_in_the_longest_queue_where_that_may_be_moved() -> None:
    done: list[tuple[int, str]] = []
    moved = threading.Event()

    def work(lane: int, job: str) -> bool:
        if job == "a":
            assert moved.wait(20)  # were nothing moved, this would wait for what is behind it
        if job == "d":
            moved.set()
        done.append((lane, job))
        return True

    Lanes([["a", "b", "c", "d"], ["x"]], work, may_move=lambda job, _lane, _other: job in {"b", "d"}).run()
    assert (1, "d") in done
    assert (0, "c") in done
    assert sorted(job for _, job in done) == ["a", "b", "c", "d", "x"]


def test_with_all_lanes_out_of_service_the_rest_is_left() -> None:
    done: list[str] = []

    def work(_lane: int, job: str) -> bool:
        done.append(job)
        return False

    Lanes([["a", "b"], ["x", "y"]], work).run()
    assert len(done) == 2


def test_a_job_waits_for_those_before_it_and_unwanted_ones_are_skipped() -> None:
    done: list[str] = []
    unwanted = {"y"}

    def work(_lane: int, job: str) -> bool:
        done.append(job)
        return True

    lanes = Lanes(
        [["a", "y", "b"], ["after a", "after b"]],
        work,
        wanted=lambda job: job not in unwanted,
        ready=lambda job: not job.startswith("after ") or job.removeprefix("after ") in done,
    )
    lanes.run()
    assert sorted(done) == ["a", "after a", "after b", "b"]
    assert done.index("a") < done.index("after a")
    assert done.index("b") < done.index("after b")


def test_what_a_job_raises_ends_all_and_is_raised() -> None:
    done: list[str] = []

    def work(_lane: int, job: str) -> bool:
        if job == "bad":
            raise ZeroDivisionError("here")
        done.append(job)
        return True

    with pytest.raises(ZeroDivisionError, match="here"):
        Lanes([["bad", "never"]], work).run()
    assert done == []


def test_an_interrupt_is_counted_begins_nothing_more_and_is_raised_at_the_end() -> None:
    done: list[str] = []

    def work(_lane: int, job: str) -> bool:
        if job == "first":
            os.kill(os.getpid(), signal.SIGINT)
            while not lanes.interrupts:
                threading.Event().wait(0.01)
            lanes.end()
        done.append(job)
        return True

    lanes = Lanes([["first", "second"]], work)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        lanes.run()
    assert done == ["first"]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_job_that_could_not_begin_is_left_to_another_lane() -> None:
    done: list[tuple[int, str]] = []

    def work(lane: int, job: str) -> bool:
        if lane == 0:
            lanes.give_back(job)
            return False
        done.append((lane, job))
        return True

    lanes = Lanes([["a", "b"], ["x"]], work)
    lanes.run()
    assert sorted(done) == [(1, "a"), (1, "b"), (1, "x")]
