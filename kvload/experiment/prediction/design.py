"""What a calibration puts on a server: points of batch and length, and how many of them a time allows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

SHORT, LONG = 64, 2048
"""Prompt tokens, where the server's limits allow them."""

MOST_AT_ONCE = 32

LONE_ANSWER, BESIDE_ANSWER = 16, 10
"""Tokens of the answers of lone requests, and of those whose prompts are read beside others."""

PASSES = 1
"""Times that the time must allow to measure every point, after the first visit, which does not count."""

FIRST_VISIT = 1.5
"""What a first visit may take more: kernels are compiled and graphs are captured for shapes that come up first."""


@dataclass(frozen=True)
class Point:
    """One closed loop: sequences that decode all the time, and one place in which prompts come one after the other.

    So prompts of known lengths are read beside a known number of sequences, and some steps of decoding alone lie
    between them.

    Attributes:
        at_once: places; with one place, requests come alone.
        context: prompt tokens of the sequences that decode all the time.
        prompts: lengths of the prompts that come one after the other.
    """

    at_once: int
    context: int
    prompts: tuple[int, ...]

    def requests(self) -> list[tuple[int, int]]:
        """Prompt and answer tokens of its requests, in the order of sending."""
        answer = LONE_ANSWER if self.at_once == 1 else BESIDE_ANSWER
        return [(self.context, self.steps)] * (self.at_once - 1) + [(length, answer) for length in self.prompts]

    @property
    def steps(self) -> int:
        """Steps it takes, about."""
        return len(self.prompts) * ((LONE_ANSWER if self.at_once == 1 else BESIDE_ANSWER) + 2)

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens it reads."""
        return (self.at_once - 1) * self.context + sum(self.prompts)

    def __str__(self) -> str:
        lengths = f"prompts of {min(self.prompts):,} to {max(self.prompts):,} tokens"
        if self.at_once == 1:
            return f"{len(self.prompts)} {lengths} alone"
        beside = "an answer" if self.at_once == 2 else f"{self.at_once - 1} answers"
        return f"{len(self.prompts)} {lengths} beside {beside} over {self.context:,} tokens"


@dataclass(frozen=True)
class Room:
    """What a server can take.

    Attributes:
        context_tokens: prompt and answer of a request.
        pool_tokens: tokens the cache holds; None where not known.
        sequences: requests running at once.
        chunk_tokens: tokens of a step.
    """

    context_tokens: int
    pool_tokens: int | None
    sequences: int
    chunk_tokens: int


@dataclass(frozen=True)
class Pace:
    """How fast a server is, as far as is known.

    Attributes:
        prompt_token_s: seconds of a prompt token.
        steps_s: seconds of a step by the sequences in it, those of more sequences later.
    """

    prompt_token_s: float
    steps_s: tuple[tuple[int, float], ...]

    def step_s(self, at_once: int) -> float:
        """A step of so many sequences: on from the two largest batches that were seen, or half in proportion to one."""
        known = [each for each in self.steps_s if each[0] <= at_once] or list(self.steps_s[:1])
        count, seconds = known[-1]
        if len(known) > 1:
            before, before_s = known[-2]
            return seconds + max(0.0, seconds - before_s) / (count - before) * (at_once - count)
        return seconds * (1 + max(0.0, at_once / count - 1) / 2)

    def seconds(self, point: Point) -> float:
        """How long a point takes once it was visited, about."""
        return point.prompt_tokens * self.prompt_token_s + point.steps * self.step_s(point.at_once)

    def seen(self, at_once: int, step_s: float) -> "Pace":
        """With a step that was seen."""
        return replace(self, steps_s=(*sorted({**dict(self.steps_s), at_once: step_s}.items()),))


def pilot(room: Room) -> Point:
    """What shows a server's pace: two short prompts, each twice."""
    short = min(SHORT, max(1, room.context_tokens // 4))
    return Point(1, 0, (short, min(4 * short, _longest_prompt(room))) * 2)


def wanted(room: Room) -> list[tuple[Point, float]]:
    """The points that are wanted, the more telling first, each with the share of the time left that it may take."""
    shortest, longest = pilot(room).prompts[0], _longest_prompt(room)
    lengths = np.unique(np.geomspace(shortest, longest, 4).astype(int)).tolist()
    # Neither rising nor falling: drifts of the server must not look like lengths.
    prompts = tuple(lengths[place] for place in (1, 3, 0, 2) if place < len(lengths))
    many = min(MOST_AT_ONCE, room.sequences)
    if room.pool_tokens is not None:
        many = max(2, min(many, room.pool_tokens // (shortest + longest + len(prompts) * (BESIDE_ANSWER + 2))))
    few = min(many, max(3, round(many**0.5)))
    answer = Point(2, 0, prompts * 2).steps
    context = min(LONG, room.context_tokens - answer - 1)
    if room.pool_tokens is not None:
        context = min(context, room.pool_tokens // many - answer - longest // many)
    context = max(shortest, context)
    found = [
        (Point(1, 0, prompts), 0.2),
        # Beside a single answer a prompt stands out most from the steps around it.
        (Point(2, shortest, prompts * 2), 0.5),
        # The far corner, which nothing else tells of.
        (Point(many, context, prompts), 0.5),
        (Point(few, context, prompts), 0.6),
        (Point(many, shortest, prompts), 0.8),
        (Point(few, shortest, prompts), 1.0),
    ]
    return list(dict(found).items())


def smaller(point: Point) -> Iterator[Point]:
    """A point and ones like it that take less time, less and less."""
    yield point
    least = min(point.prompts)
    while point.context > 2 * least:
        point = replace(point, context=max(least, point.context // 2))
        yield point
    if len(point.prompts) > 4:
        point = replace(point, prompts=point.prompts[: len(point.prompts) // 2])
        yield point
    if len(point.prompts) > 2:
        point = replace(point, prompts=(max(point.prompts), least))
        yield point
    while point.at_once > 3:
        point = replace(point, at_once=max(3, point.at_once // 2))
        yield point
    while max(point.prompts) > 4 * least:
        point = replace(point, prompts=(max(point.prompts) // 2, least))
        yield point


def fitting(point: Point, pace: Pace, left_s: float) -> Point | None:
    """The largest likeness of a point of which a first visit and the passes fit into the time left; None for none."""
    each = FIRST_VISIT + PASSES
    return next((one for one in smaller(point) if each * pace.seconds(one) <= left_s), None)


def of_passes(pace: Pace, points: Sequence[Point]) -> float:
    """Seconds of the passes over points that were visited."""
    return PASSES * sum(pace.seconds(point) for point in points)


def _longest_prompt(room: Room) -> int:
    """A prompt that one step can read beside the others'."""
    longest = min(LONG, room.context_tokens // 2, max(room.chunk_tokens // 2, room.chunk_tokens - MOST_AT_ONCE))
    return max(1, longest if room.pool_tokens is None else min(longest, room.pool_tokens // 4))
