"""The steps of a server, rebuilt from a run's chunk times (:mod:`.bunches`), and its habits beside them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvload.analysis.prediction.bunches import bunches_of
from kvload.analysis.records.table import Bools, Floats, Ints, RecordTable
from kvload.step_model import FEATURES

WINDOW = 6
"""Steps that are measured together: work adds up, while single bunches come early and late (a server that prepares the
next step beside the one that runs hands a long one's tokens out late and the next one's early)."""

LONGEST_WINDOW = 24
"""Steps of a stretch at most."""

PROMPT_STEPS, PROMPT_TOKENS = FEATURES.index("prompt_steps"), FEATURES.index("prompt_tokens")

Cube = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Steps:
    """Measured stretches of one or several steps.

    Attributes:
        each: what each step of a stretch did, in their order, ``(n, steps, features)`` in the order of ``FEATURES``;
            zeros behind the last.
        seconds: how long each stretch took, ``(n,)``.
    """

    each: Cube
    seconds: Floats

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def work(self) -> Floats:
        """What each stretch did, ``(n, features)``."""
        total: Floats = self.each.sum(axis=1)
        return total

    @property
    def prompts(self) -> Floats:
        """Prompt tokens of each step of a stretch, ``(n, steps)``."""
        return self.each[:, :, PROMPT_TOKENS]

    @classmethod
    def none(cls) -> "Steps":
        """Nothing measured."""
        return cls(np.zeros((0, 1, len(FEATURES))), np.zeros(0))

    @classmethod
    def single(cls, work: Floats, seconds: Floats) -> "Steps":
        """Stretches of one step each."""
        return cls(work[:, None, :], seconds)

    def where(self, rows: Bools | Ints) -> "Steps":
        """Some of them."""
        return Steps(self.each[rows], self.seconds[rows])


def join(parts: list[Steps]) -> Steps:
    """The steps of several runs of one server."""
    parts = [part for part in parts if len(part)]
    if not parts:
        return Steps.none()
    longest = max(part.each.shape[1] for part in parts)
    padded = [np.pad(part.each, ((0, 0), (0, longest - part.each.shape[1]), (0, 0))) for part in parts]
    return Steps(np.concatenate(padded), np.concatenate([part.seconds for part in parts]))


@dataclass(frozen=True)
class Habits:
    """How a server takes requests in and hands tokens out.

    Attributes:
        ahead_steps: steps that are settled before a request that arrives can be part of one: 0 where the step after
            the running one takes it, 1 where a server schedules that one early. None where no run shows it.
        token_s: seconds from one token of a step to the next one's on the wire; None without crowded steps.
        launches_s: how long launching steps with prompts took, of those that can be told, ``(n,)``.
    """

    ahead_steps: int | None
    token_s: float | None
    launches_s: Floats


def rebuild(table: RecordTable, *, chunk_tokens: int, kept_tokens: int | None = None) -> Steps:
    """The steps of a run that can be told from its records.

    Args:
        table: the run.
        chunk_tokens: tokens of one step at most. Longer prompts are computed in several, and steps beside them are left
            out, since how their chunks fell is not in the records.
        kept_tokens: tokens of a sequence that are read, where the method evicts.

    Returns:
        steps in which at least one request decoded.
    """
    bunches, prompts, rows = bunches_of(table, kept_tokens)
    if bunches is None:
        return Steps.none()
    seconds, decodes, context, whole = bunches.steps()
    cached = _cached(table)
    long = prompts - cached > chunk_tokens
    begun = table.t_send_s + np.nan_to_num(table.queue_s)
    for row in rows[long[rows]]:
        whole &= ~((bunches.start_s > begun[row]) & (bunches.start_s - seconds < table.t_first_s[row]))
    prompt, work = bunches.prompts_computed(prompts, cached)
    # A sum of prompts beyond one step's tokens was computed in several steps.
    used = whole & (prompt <= chunk_tokens)
    beside = (prompt > 0).astype(np.float64)
    count = 1 + bunches.steps_more
    features = np.stack([count, beside, count * decodes, count * context, prompt, work], axis=1)
    return _stretches(features, seconds, used)


def _cached(table: RecordTable) -> Floats:
    """Tokens of each prompt that the prefix cache held; 0 where nobody says."""
    known: Floats = np.nan_to_num(table.cached_tokens)
    return known


def habits(table: RecordTable, *, chunk_tokens: int) -> Habits:
    """What the bunches of a run show of its server beside the steps."""
    bunches, prompts, rows = bunches_of(table, None)
    if bunches is None:
        return Habits(None, None, np.zeros(0))
    ahead_steps = bunches.ahead_steps(table, rows[prompts[rows] <= chunk_tokens])
    return Habits(ahead_steps, bunches.token_s(), bunches.launches_s(prompts))


def lone_first_tokens(table: RecordTable) -> tuple[Floats, Floats]:
    """Prompt tokens computed, and TTFT (s), of requests during whose prefill no other request was in flight."""
    sent, first = table.t_send_s, table.t_first_s
    known = ~np.isnan(sent)
    end = np.where(np.isnan(table.t_end_s), np.inf, table.t_end_s)
    rows = np.flatnonzero(table.ok & ~np.isnan(first))
    begun = np.searchsorted(np.sort(sent[known]), first[rows], side="right")
    over = np.searchsorted(np.sort(end[known]), sent[rows], side="left")
    alone = rows[begun - over == 1]
    lengths = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)
    prompts = (lengths - _cached(table))[alone]
    counted = ~np.isnan(prompts)
    return prompts[counted], (first - sent)[alone][counted]


def _stretches(features: Floats, seconds: Floats, used: Bools) -> Steps:
    """Sums over :data:`WINDOW` or more steps that follow each other; shorter rests are left out.

    A stretch ends between steps without prompts where that takes no more than :data:`LONGEST_WINDOW` steps: the bunch
    that shows a prompt's step may be one early or late, and must not fall into another stretch than its time.
    """
    prompts = features[:, PROMPT_TOKENS]
    calm = prompts == 0
    edge = calm & np.roll(calm, 1)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], used, [False]]).astype(np.int8)))
    starts, ends = [], []
    for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        start = begin
        while end - start >= WINDOW:
            stop = start + WINDOW
            limit = min(end, start + LONGEST_WINDOW)
            while stop < limit and not edge[stop]:
                stop += 1
            starts.append(start)
            ends.append(stop)
            start = stop
    if not starts:
        return Steps.none()
    each = np.zeros((len(starts), LONGEST_WINDOW, len(FEATURES)))
    took = np.zeros(len(starts))
    for row, (start, stop) in enumerate(zip(starts, ends, strict=True)):
        each[row, : stop - start] = features[start:stop]
        took[row] = seconds[start:stop].sum()
    return Steps(each, took)
