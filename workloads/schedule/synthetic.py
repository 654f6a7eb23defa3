"""Traces made from nothing but a seed: lengths, arrivals of a given rate, conversations, shared beginnings."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from kvload.errors import UsageError
from kvload.units import parse_tokens
from kvload.workloads.schedule.arrivals import ArrivalSpec, Floats, offsets, uniforms
from kvload.workloads.traces.trace import TraceRequest

ARRIVAL_DIGITS = 6
"""Arrivals of made-up traces are whole microseconds."""

INPUT_SPREAD, OUTPUT_SPREAD = 0.9, 0.6
"""Standard deviation of the logarithm of long-tailed prompt and answer lengths."""


@dataclass(frozen=True)
class Uniform:
    """Lengths in tokens from ``low`` to ``high``, both included, each as likely; one length where they are equal."""

    low: int
    high: int

    def drawn(self, draws: Floats) -> Floats:
        """Lengths for uniform numbers in (0, 1), of the same shape."""
        return np.floor(self.low + draws * (self.high - self.low + 1))


@dataclass(frozen=True)
class LongTailed:
    """Lengths in tokens of a lognormal distribution: mean, spread of the logarithm, and what they are cut to."""

    mean: float
    maximum: int
    spread: float

    def drawn(self, draws: Floats) -> Floats:
        """Lengths for uniform numbers in (0, 1), of the same shape."""
        from scipy.special import ndtri

        normal = np.asarray(ndtri(draws), dtype=np.float64)
        center = math.log(self.mean) - self.spread**2 / 2
        return np.clip(np.round(np.exp(center + self.spread * normal)), 1, self.maximum)


LengthSpec = Uniform | LongTailed


@dataclass(frozen=True)
class SyntheticSpec:
    """What to make.

    Attributes:
        requests: how many in all.
        rate: arrivals per second; of conversations, where there are sessions.
        burstiness: 1 is Poisson, below comes in bursts (see :class:`ArrivalSpec`).
        input, output: lengths in tokens of prompts (of what is new in a later turn) and answers.
        pairs: lengths of prompt and answer together, taken in turn, in place of ``input`` and ``output``.
        shared_prefix: tokens that stand before every first turn's prompt, the same for all of one prefix.
        prefixes: how many different ones there are; requests take them in turn.
        sessions: spread the requests over so many conversations; 0 makes single requests.
        turns_mean: mean turns of a conversation, geometrically distributed, in place of ``sessions``.
        think_mean_s: mean pause before a later turn, exponentially distributed.
        seed: the same seed makes the same trace everywhere.
    """

    requests: int = 100
    rate: float = 4.0
    burstiness: float = 1.0
    input: LengthSpec = LongTailed(512.0, 8192, INPUT_SPREAD)
    output: LengthSpec = LongTailed(128.0, 2048, OUTPUT_SPREAD)
    pairs: tuple[tuple[int, int], ...] = ()
    shared_prefix: int = 0
    prefixes: int = 1
    sessions: int = 0
    turns_mean: float | None = None
    think_mean_s: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise UsageError(f"a trace of {self.requests} requests is empty", where="--requests")
        if not 0 <= self.sessions <= self.requests:
            raise UsageError(f"{self.requests} requests do not make {self.sessions} sessions", where="--sessions")
        for flag, lengths in (("input", self.input), ("output", self.output)):
            if isinstance(lengths, LongTailed):
                for name, value in (("mean", lengths.mean), ("max", lengths.maximum)):
                    if not value >= 1:
                        raise UsageError(f"{value} is not a length of 1 or more", where=f"--{flag}-{name}")
        if not 0 <= self.think_mean_s < math.inf:
            raise UsageError(f"{self.think_mean_s} is not a pause", where="--think")
        if self.turns_mean is not None and (self.sessions or not 1 <= self.turns_mean < math.inf):
            raise UsageError("conversations have a mean of 1 turn or more, or a number", where="--turns, --sessions")
        if self.prefixes < 1 or self.shared_prefix < 0:
            raise UsageError("there is at least one prefix of 0 or more tokens", where="--shared-prefix, --prefixes")

    @property
    def arrivals(self) -> ArrivalSpec:
        """The process of the first turns."""
        return ArrivalSpec(kind="gamma", rate=self.rate, burstiness=self.burstiness, seed=self.seed)


MEASURED: dict[str, tuple[float, float]] = {"sharegpt": (161.31, 337.99), "alpaca": (19.31, 58.45)}
"""Mean lengths in tokens of prompts and answers in two datasets (Kwon et al. 2023, figure 11)."""


def synthetic(spec: SyntheticSpec) -> Iterator[TraceRequest]:
    """A trace of lengths, conversations one after another in the order of their first turn."""
    turns = _turns(spec)
    arrivals = arrival_times(len(turns), spec.arrivals)
    inputs = spec.input.drawn(uniforms(spec.seed, "input", spec.requests))
    outputs = spec.output.drawn(uniforms(spec.seed, "output", spec.requests))
    pauses = np.round(-np.log(uniforms(spec.seed, "think", spec.requests)) * spec.think_mean_s, 3)
    has_sessions = bool(spec.sessions or spec.turns_mean is not None)
    number = 0
    for conversation, count in enumerate(turns):
        for turn in range(count):
            length, answer = int(inputs[number]), int(outputs[number])
            if spec.pairs:
                length, answer = spec.pairs[number % len(spec.pairs)]
            prefix = spec.shared_prefix if not turn else 0
            yield TraceRequest(
                id=f"s{spec.seed}-{number}",
                arrival=None if turn else float(arrivals[conversation]),
                input_length=prefix + length,
                output_length=answer,
                block_ids=[conversation % spec.prefixes] if prefix else None,
                block_size=prefix or None,
                session=f"s{spec.seed}-c{conversation}" if has_sessions else None,
                turn=turn if has_sessions else None,
                think_time=float(pauses[number]) if turn else None,
            )
            number += 1


def parse_lengths(text: str, *, where: str) -> Uniform:
    """Lengths from ``1024``, ``1k`` or ``512-2k``.

    Raises:
        UsageError: it is none of these.
    """
    low, separator, high = text.partition("-")
    found = Uniform(parse_tokens(low, where=where), parse_tokens(high if separator else low, where=where))
    if found.high < found.low:
        raise UsageError(f"there are no lengths from {low} to {high}", where=where)
    return found


def parse_pairs(text: str, *, where: str) -> tuple[tuple[int, int], ...]:
    """Lengths of prompt and answer from ``1024:128,8k:512``.

    Raises:
        UsageError: one of them is no pair of lengths.
    """
    pairs = []
    for part in text.split(","):
        prompt, separator, answer = part.partition(":")
        if not separator:
            raise UsageError(f"'{part}' is no pair of lengths", where=where, hint="write PROMPT:ANSWER, as in 1024:128")
        pairs.append((parse_tokens(prompt.strip(), where=where), parse_tokens(answer.strip(), where=where)))
    return tuple(pairs)


def arrival_times(count: int, spec: ArrivalSpec) -> Floats:
    """Arrivals of a made-up trace, shape (count,), in seconds."""
    return np.round(offsets(np.zeros(count), spec), ARRIVAL_DIGITS)


def _turns(spec: SyntheticSpec) -> list[int]:
    """Turns of each conversation, ``requests`` in all."""
    if spec.turns_mean is None:
        conversations = spec.sessions or spec.requests
        longer = spec.requests % conversations
        return [spec.requests // conversations + (number < longer) for number in range(conversations)]
    draws = uniforms(spec.seed, "turns", spec.requests)
    ends = 1 / spec.turns_mean
    counts = np.ones(spec.requests) if ends == 1 else 1 + np.floor(np.log(draws) / math.log1p(-ends))
    found: list[int] = []
    left = spec.requests
    for count in counts:
        found.append(min(int(count), left))
        left -= found[-1]
        if not left:
            break
    return found
