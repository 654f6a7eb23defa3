"""The steps of a server, rebuilt from a run's chunk times.

A decoding request receives a token at the end of every step, so the gap between two of its tokens is a step. What the
step did follows from the records: who was decoding in the middle of the gap, with how many tokens so far, and whose
first tokens (prompts just finished) came at its end. Requests that decode together see the same steps: their gaps are
merged.
"""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.records.table import Bools, Floats, Ints, RecordTable, chunk_blocks, chunk_times_us
from kvload.step_model import FEATURES

MERGE_SHARE = 0.5
"""Gaps whose middles lie closer than this share of their length belong to one step."""

LONGEST_GAPS = 20.0
"""A gap of more than so many median gaps is no single step: the stream stood still for another reason."""


@dataclass(frozen=True)
class Steps:
    """Measured steps.

    Attributes:
        work: what each did, ``(n, features)`` in the order of ``FEATURES``.
        seconds: how long it took, ``(n,)``.
    """

    work: Floats
    seconds: Floats

    def __len__(self) -> int:
        return len(self.seconds)


def join(parts: list[Steps]) -> Steps:
    """The steps of several runs."""
    if not parts:
        return Steps(np.zeros((0, len(FEATURES))), np.zeros(0))
    return Steps(np.concatenate([part.work for part in parts]), np.concatenate([part.seconds for part in parts]))


def rebuild(table: RecordTable, *, chunk_tokens: int, kept_tokens: int | None = None) -> Steps:
    """The steps of a run that can be told from its records.

    Args:
        table: the run.
        chunk_tokens: tokens of one step at most: longer prompts are computed in several, and steps beside them are left
            out, since how their chunks fell is not in the records.
        kept_tokens: tokens of a sequence that are read, where the method evicts.

    Returns:
        steps in which at least one request decoded.
    """
    rows = np.flatnonzero(table.ok & ~np.isnan(table.t_first_s) & ~table.in_bursts)
    rows = rows[(table.chunk_count[rows] > 1)]
    if len(rows) < 1:
        return join([])
    prompts = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)
    known = ~np.isnan(prompts[rows])
    rows = rows[known]
    times, owner, tokens = _chunks(table, rows)
    if not len(times):
        return join([])
    state = _State(table, rows, prompts, times, owner, tokens)
    start, end, length = _gaps(times, owner, tokens)
    keep = length < LONGEST_GAPS * np.median(length)
    start, end, length = start[keep], end[keep], length[keep]
    middle = (start + end) / 2
    decodes, context = state.at(middle, kept_tokens)
    finished, work, long = state.prompts_finished(middle, end + length / 2, chunk_tokens)
    alone = ~state.beside_long_prompt(start, end, chunk_tokens) & ~long & (decodes >= 1)
    order = np.argsort(middle[alone], kind="stable")
    features = np.stack([np.ones_like(middle), decodes, context, finished, work], axis=1)[alone][order]
    return _merged(middle[alone][order], length[alone][order], features)


def lone_first_tokens(table: RecordTable) -> tuple[Floats, Floats]:
    """Prompt lengths and TTFT (s) of requests during whose prefill no other request was in flight."""
    sent, first = table.t_send_s, table.t_first_s
    end = np.where(np.isnan(table.t_end_s), np.inf, table.t_end_s)
    rows = np.flatnonzero(table.ok & ~np.isnan(first))
    order = np.sort(sent[~np.isnan(sent)])
    ends = np.sort(end[~np.isnan(sent)])
    begun = np.searchsorted(order, first[rows], side="right")
    over = np.searchsorted(ends, sent[rows], side="left")
    alone = rows[begun - over == 1]
    prompts = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)[alone]
    known = ~np.isnan(prompts)
    return prompts[known], (first - sent)[alone][known]


def _chunks(table: RecordTable, rows: Ints) -> tuple[Floats, Ints, Ints]:
    """Time (s on the run's clock), row and tokens of every chunk of these requests, request by request."""
    times, owner, tokens = [], [], []
    for block, part, _ in chunk_blocks(table, rows):
        counts = table.chunk_count[part]
        times.append(np.repeat(table.t_send_s[part], counts) + chunk_times_us(table, block, part) * 1e-6)
        owner.append(np.repeat(part, counts))
        tokens.append(block["tokens"].astype(np.int64))
    if not times:
        return np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64)
    return np.concatenate(times), np.concatenate(owner), np.concatenate(tokens)


def _gaps(times: Floats, owner: Ints, tokens: Ints) -> tuple[Floats, Floats, Floats]:
    """Start, end and length of the gaps between neighbouring chunks of one token each, of one request."""
    same = (owner[1:] == owner[:-1]) & (tokens[1:] == 1)
    start, end = times[:-1][same], times[1:][same]
    length = end - start
    real = length > 0
    return start[real], end[real], length[real]


class _State:
    """Who decodes when, and with how many tokens."""

    def __init__(
        self, table: RecordTable, rows: Ints, prompts: Floats, times: Floats, owner: Ints, tokens: Ints
    ) -> None:
        first, last = table.t_first_s[rows], table.t_last_s[rows]
        by_first, by_last = np.argsort(first), np.argsort(last)
        self._first, self._last = first[by_first], last[by_last]
        output = np.zeros(len(table.status))
        np.add.at(output, owner, tokens)
        prompt = prompts[rows]
        self._prompt_by_first = _sums(prompt[by_first])
        self._prompt_by_last = _sums((prompt + output[rows])[by_last])
        order = np.argsort(times)
        self._token_times, self._token_sums = times[order], _sums(tokens[order].astype(float))
        self._prompt = prompt[by_first]
        self._work_sums = _sums(self._prompt * (self._prompt + 1) / 2)
        self._prompt_sums = _sums(self._prompt)
        self._sent = table.t_send_s[rows][by_first] + np.nan_to_num(table.queue_s[rows][by_first])
        self._all_first, self._all_last, self._all_prompt, self._all_output = first, last, prompt, output[rows]

    def at(self, moment: Floats, kept_tokens: int | None) -> tuple[Floats, Floats]:
        """Requests that decode at these moments, and the tokens they read."""
        begun = np.searchsorted(self._first, moment, side="right")
        over = np.searchsorted(self._last, moment, side="right")
        decodes = (begun - over).astype(float)
        if kept_tokens is not None:
            return decodes, self._kept_at(moment, kept_tokens)
        generated = self._token_sums[np.searchsorted(self._token_times, moment, side="right")]
        return decodes, self._prompt_by_first[begun] + generated - self._prompt_by_last[over]

    def _kept_at(self, moment: Floats, kept_tokens: int) -> Floats:
        """The same where at most ``kept_tokens`` of a sequence are read; generated tokens spread evenly in time."""
        total = np.zeros(len(moment))
        span = np.maximum(self._all_last - self._all_first, 1e-9)
        for first, last, prompt, output, width in zip(
            self._all_first, self._all_last, self._all_prompt, self._all_output, span, strict=True
        ):
            active = (moment >= first) & (moment < last)
            length = prompt + output * (moment[active] - first) / width
            total[active] += np.minimum(length, kept_tokens)
        return total

    def prompts_finished(self, start: Floats, end: Floats, chunk_tokens: int) -> tuple[Floats, Floats, Bools]:
        """Prompt tokens and prompt work of first tokens between two moments, and whether any prompt took many steps."""
        low = np.searchsorted(self._first, start, side="right")
        high = np.searchsorted(self._first, end, side="right")
        long = _sums((self._prompt > chunk_tokens).astype(float))
        tokens = self._prompt_sums[high] - self._prompt_sums[low]
        many = (long[high] - long[low] > 0) | (tokens > chunk_tokens)
        return tokens, self._work_sums[high] - self._work_sums[low], many

    def beside_long_prompt(self, start: Floats, end: Floats, chunk_tokens: int) -> Bools:
        """Gaps that overlap the prefill of a prompt of more than one chunk."""
        beside = np.zeros(len(start), np.bool_)
        for place in np.flatnonzero(self._prompt > chunk_tokens):
            beside |= (end > self._sent[place]) & (start < self._first[place])
        return beside


def _sums(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _merged(middle: Floats, length: Floats, features: Floats) -> Steps:
    """One row for the gaps of one step."""
    if not len(middle):
        return join([])
    starts = [0]
    anchor = middle[0]
    for place in range(1, len(middle)):
        if middle[place] - anchor > MERGE_SHARE * length[place]:
            starts.append(place)
            anchor = middle[place]
    cuts = np.asarray(starts)
    counts = np.diff(np.append(cuts, len(middle)))
    work = np.add.reduceat(features, cuts, axis=0) / counts[:, None]
    return Steps(work, np.add.reduceat(length, cuts) / counts)
