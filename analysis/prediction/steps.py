"""The steps of a server, rebuilt from a run's chunk times.

Whoever decodes receives one token at the end of every step, so tokens arrive in bunches, one bunch a step: a bunch ends
where a request would come twice, or where nothing comes for a while. The time from bunch to bunch is the step, its
members are who decoded, and their tokens so far what was read. A prompt's tokens belong to the step that computed them:
the one that its first token ended, or one before where the server hands tokens out a step later (asynchronous
scheduling). Which of the two is found by what explains the long steps.
"""

from dataclasses import dataclass, replace

import numpy as np

from kvload.analysis.records.table import Bools, Floats, Ints, RecordTable, chunk_blocks, chunk_times_us
from kvload.step_model import FEATURES

PAUSE_SHARE = 0.25
"""A pause of this share of the median gap between a request's tokens ends a bunch."""

WINDOW = 6
"""Steps that are measured together: work adds up, while single bunches come early and late (a server that prepares the
next step beside the one that runs hands a long one's tokens out late and the next one's early)."""

LONGEST_GAPS = 20.0
"""A step of more than so many medians is none: the stream stood still for another reason."""

MOST_LAG = 2
"""Steps by which tokens may be handed out late."""


@dataclass(frozen=True)
class Steps:
    """Measured stretches of one or several steps.

    Attributes:
        work: what each did, summed over its steps, ``(n, features)`` in the order of ``FEATURES``.
        seconds: how long it took, ``(n,)``.
        lag_steps: steps between a prompt's being computed and its first token, as bunches show it.
    """

    work: Floats
    seconds: Floats
    lag_steps: int = 0

    def __len__(self) -> int:
        return len(self.seconds)


def join(parts: list[Steps]) -> Steps:
    """The steps of several runs of one server."""
    if not parts:
        return Steps(np.zeros((0, len(FEATURES))), np.zeros(0))
    lag = int(np.median([part.lag_steps for part in parts if len(part)] or [0]))
    return Steps(np.concatenate([part.work for part in parts]), np.concatenate([part.seconds for part in parts]), lag)


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
    prompts = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)
    usable = table.ok & ~np.isnan(table.t_first_s) & ~table.in_bursts & ~np.isnan(prompts) & (table.chunk_count > 1)
    rows = np.flatnonzero(usable)
    times, owner, tokens = _chunks(table, rows)
    if len(times) < 2:
        return join([])
    bunches = _Bunches(times, owner, tokens, prompts, kept_tokens)
    seconds, decodes, context, whole = bunches.steps()
    long = prompts > chunk_tokens
    begun = table.t_send_s + np.nan_to_num(table.queue_s)
    for row in rows[long[rows]]:
        whole &= ~((bunches.start_s > begun[row]) & (bunches.start_s - seconds < table.t_first_s[row]))
    best: Steps | None = None
    least = np.inf
    for lag in range(MOST_LAG + 1):
        prompt, work = bunches.prompts_computed(prompts, lag)
        # A sum of prompts beyond one step's tokens was computed in several steps.
        used = whole & (prompt <= chunk_tokens)
        beside = (prompt > 0).astype(np.float64)
        features = np.stack([np.ones_like(seconds), beside, decodes, context, prompt, work], axis=1)
        stretches = _stretches(features, seconds, used)
        rest = _unexplained(stretches)
        if best is None or rest < least * 0.98:
            best, least = replace(stretches, lag_steps=lag), rest
    return best if best is not None else join([])


def lone_first_tokens(table: RecordTable) -> tuple[Floats, Floats]:
    """Prompt lengths and TTFT (s) of requests during whose prefill no other request was in flight."""
    sent, first = table.t_send_s, table.t_first_s
    known = ~np.isnan(sent)
    end = np.where(np.isnan(table.t_end_s), np.inf, table.t_end_s)
    rows = np.flatnonzero(table.ok & ~np.isnan(first))
    begun = np.searchsorted(np.sort(sent[known]), first[rows], side="right")
    over = np.searchsorted(np.sort(end[known]), sent[rows], side="left")
    alone = rows[begun - over == 1]
    prompts = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)[alone]
    counted = ~np.isnan(prompts)
    return prompts[counted], (first - sent)[alone][counted]


def _chunks(table: RecordTable, rows: Ints) -> tuple[Floats, Ints, Ints]:
    """Time (s on the run's clock), row and tokens of every chunk of these requests, in the order of arrival."""
    times, owner, tokens = [], [], []
    for block, part, _ in chunk_blocks(table, rows):
        counts = table.chunk_count[part]
        times.append(np.repeat(table.t_send_s[part], counts) + chunk_times_us(table, block, part) * 1e-6)
        owner.append(np.repeat(part, counts))
        tokens.append(block["tokens"].astype(np.int64))
    if not times:
        return np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    joined = np.concatenate(times)
    order = np.argsort(joined, kind="stable")
    return joined[order], np.concatenate(owner)[order], np.concatenate(tokens)[order]


class _Bunches:
    """Chunks in bunches, one a step.

    Attributes:
        start_s: arrival of each bunch's first chunk.
    """

    def __init__(self, times: Floats, owner: Ints, tokens: Ints, prompts: Floats, kept_tokens: int | None) -> None:
        self._times, self._owner = times, owner
        before = _tokens_before(owner, tokens)
        length = prompts[owner] + before
        self._read = length if kept_tokens is None else np.minimum(length, kept_tokens)
        self._first = before == 0
        self._single = tokens == 1
        self._bunch = _bunch_of(times, owner)
        starts = np.flatnonzero(np.diff(self._bunch, prepend=-1))
        self.start_s = times[starts]

    def steps(self) -> tuple[Floats, Floats, Floats, Bools]:
        """Seconds, decoding requests and tokens read of every bunch, and whether it is a whole step.

        That is one that follows the bunch before without a rest of the server: a request has a token in both.
        """
        count = len(self.start_s)
        seconds = np.diff(self.start_s, prepend=np.nan)
        decoding = ~self._first
        decodes = np.bincount(self._bunch[decoding], minlength=count).astype(np.float64)
        context = np.bincount(self._bunch[decoding], weights=self._read[decoding], minlength=count).astype(np.float64)
        order = np.lexsort((self._bunch, self._owner))
        same = self._owner[order][1:] == self._owner[order][:-1]
        follows = same & (self._bunch[order][1:] - self._bunch[order][:-1] == 1)
        carried = np.zeros(count, np.bool_)
        carried[self._bunch[order][1:][follows & self._single[order][1:]]] = True
        whole = carried & (decodes >= 1) & (seconds > 0)
        if whole.any():
            whole &= seconds < LONGEST_GAPS * np.median(seconds[whole])
        return np.nan_to_num(seconds), decodes, context, whole

    def prompts_computed(self, prompts: Floats, lag: int) -> tuple[Floats, Floats]:
        """Prompt tokens, and the tokens that those look at, of every step, if tokens come ``lag`` steps late."""
        count = len(self.start_s)
        rows = self._owner[self._first]
        place = np.maximum(self._bunch[self._first] - lag, 0)
        tokens = prompts[rows]
        return (
            np.bincount(place, weights=tokens, minlength=count).astype(np.float64),
            np.bincount(place, weights=tokens * (tokens + 1) / 2, minlength=count).astype(np.float64),
        )


def _tokens_before(owner: Ints, tokens: Ints) -> Ints:
    """Tokens of the same request in the chunks before each chunk."""
    order = np.argsort(owner, kind="stable")
    sums = np.cumsum(tokens[order]) - tokens[order]
    starts = np.flatnonzero(np.diff(owner[order], prepend=-1))
    counts = np.diff(np.append(starts, len(order)))
    found = np.empty(len(owner), np.int64)
    found[order] = sums - np.repeat(sums[starts], counts)
    return found


def _bunch_of(times: Floats, owner: Ints) -> Ints:
    """The number of each chunk's bunch."""
    order = np.argsort(owner, kind="stable")
    same = owner[order][1:] == owner[order][:-1]
    gaps = np.diff(times[order])[same]
    pause_s = PAUSE_SHARE * float(np.median(gaps)) if len(gaps) else 0.0
    found = np.empty(len(times), np.int64)
    last_bunch = np.full(int(owner.max()) + 1, -1, np.int64)
    number = 0
    for place, (row, pause) in enumerate(
        zip(owner.tolist(), (np.diff(times, prepend=times[0]) > pause_s).tolist(), strict=True)
    ):
        if pause or last_bunch[row] == number:
            number += 1
        last_bunch[row] = number
        found[place] = number
    return found


def _stretches(features: Floats, seconds: Floats, used: Bools) -> Steps:
    """Sums over :data:`WINDOW` steps that follow each other; shorter rests are left out."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], used, [False]]).astype(np.int8)))
    starts = [
        start
        for begin, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
        for start in range(begin, end - WINDOW + 1, WINDOW)
    ]
    if not starts:
        return join([])
    rows = np.asarray(starts)[:, None] + np.arange(WINDOW)
    return Steps(features[rows].sum(axis=1), seconds[rows].sum(axis=1))


def _unexplained(steps: Steps) -> float:
    """How much of the time decodes, context and prompts leave unexplained: a mean of relative errors."""
    from scipy.optimize import nnls

    if len(steps) <= len(FEATURES):
        return np.inf
    scale = np.maximum(steps.work.max(axis=0), 1e-12)
    row = 1 / np.sqrt(steps.seconds)
    found, _ = nnls(steps.work / scale * row[:, None], steps.seconds * row)
    return float(np.mean(np.abs(steps.work / scale @ found / steps.seconds - 1)))
