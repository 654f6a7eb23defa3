"""The chunks of a run in bunches, one for every step of its server.

Whoever decodes receives one token at the end of every step, so tokens arrive in bunches: a bunch ends where a request
would come twice, or where nothing comes for a while. The time from bunch to bunch is the step, its members are who
decoded, and their tokens so far what was read. A prompt's tokens belong to the step that its first token ended; a
request whose tokens stay away for many steps had lost its pages, and all of it was computed again in the step that its
next token ended.
"""

import numpy as np

from kvload.analysis.records.table import Bools, Floats, Ints, RecordTable, chunk_blocks, chunk_times_us

PAUSE_SHARE = 0.25
"""A pause of this share of the median gap between a request's tokens ends a bunch."""

LONGEST_GAPS = 20.0
"""A step of more than so many medians is none: the stream stood still for another reason."""

SHORTEST_GAP = 0.1
"""Nor is one of less than this share of the median: the client read several steps at once."""

RESUMED_BUNCHES, RESUMED_GAPS = 3, 4.0
"""A request that misses so many bunches, and so many median gaps, had lost its pages."""

FEWEST_ARRIVALS = 8
"""Requests that must show how many steps a server settles early."""

LEAST_MISSING = 0.002
PIECE_S = 0.25
"""Share of tokens without a chunk of their own that is worth a look, and pieces of time in which they are alike."""

LEAST_LAUNCH = 1.5
"""Usual steps that one lasts at least behind which another was launched."""

CROWD = 5
"""Tokens of a bunch from which on the time between them is measured."""


class Bunches:
    """Chunks in bunches, one a step.

    Attributes:
        start_s: arrival of each bunch's first chunk.
        steps_more: steps of each beyond its one.
    """

    def __init__(
        self, times: Floats, owner: Ints, tokens: Ints, prompts: Floats, made: Floats, kept_tokens: int | None
    ) -> None:
        self._times, self._owner = times, owner
        before = _tokens_before(owner, tokens)
        self._length = prompts[owner] + before
        self._read = self._length if kept_tokens is None else np.minimum(self._length, kept_tokens)
        self._first = before == 0
        self._tokens = tokens
        self._bunch = _bunch_of(times, owner)
        starts = np.flatnonzero(np.diff(self._bunch, prepend=-1))
        self.start_s = times[starts]
        self.steps_more = self._steps_more(made - np.bincount(owner, weights=tokens, minlength=len(made)))

    def _steps_more(self, missing: Floats) -> Floats:
        """Steps of each bunch beyond its one, ``(bunches,)``.

        A server's front that falls behind hands the tokens of several steps out as one chunk, whose text says nothing
        of their number; that all of a request's chunks are too few is known from its count of tokens. Every request
        under way misses the same steps, so how many there were in each piece of time is what explains them all best.
        They are in bunches without prompts: steps with prompts are slow enough for any front.

        Args:
            missing: tokens of each request that its chunks do not account for, ``(requests,)``.
        """
        from scipy.optimize import nnls

        count = len(self.start_s)
        rows = np.unique(self._owner)
        if missing[rows].sum() < LEAST_MISSING * len(self._owner):
            return np.zeros(count)
        calm = np.bincount(self._bunch[self._first], minlength=count) == 0
        piece = np.floor((self.start_s - self.start_s[0]) / PIECE_S).astype(np.int64)
        sums = np.zeros((count + 1, int(piece[-1]) + 1))
        sums[np.arange(1, count + 1), piece] = calm
        np.cumsum(sums, axis=0, out=sums)
        first = np.full(len(missing), count, np.int64)
        last = np.full(len(missing), -1, np.int64)
        np.minimum.at(first, self._owner, self._bunch)
        np.maximum.at(last, self._owner, self._bunch)
        design = sums[last[rows] + 1] - sums[first[rows] + 1]
        rates, _ = nnls(design, np.maximum(0.0, missing[rows]))
        found: Floats = calm * rates[piece]
        return found

    def steps(self) -> tuple[Floats, Floats, Floats, Bools]:
        """Seconds, decoding requests and tokens read of every bunch, and whether it is a whole step.

        That is one that follows the bunch before without a rest of the server: a request has a token in both.
        """
        count = len(self.start_s)
        seconds = np.diff(self.start_s, prepend=np.nan)
        decoding = ~self._first
        # A chunk of several tokens is one whose request missed bunches: over a stretch of steps the sums are right.
        made = self._tokens[decoding].astype(np.float64)
        place = self._bunch[decoding]
        decodes = np.bincount(place, weights=made, minlength=count).astype(np.float64)
        context = np.bincount(place, weights=made * self._read[decoding], minlength=count).astype(np.float64)
        order = np.lexsort((self._bunch, self._owner))
        same = self._owner[order][1:] == self._owner[order][:-1]
        follows = same & (self._bunch[order][1:] - self._bunch[order][:-1] == 1)
        carried = np.zeros(count, np.bool_)
        carried[self._bunch[order][1:][follows & (self._tokens[order][1:] == 1)]] = True
        whole = carried & (decodes >= 1) & (seconds > 0)
        if whole.any():
            usual_s = np.median(seconds[whole])
            read_late = seconds <= SHORTEST_GAP * usual_s
            # Where several steps were read at once, the time of all of them is in the first.
            whole &= (seconds < LONGEST_GAPS * usual_s) & ~read_late & ~np.append(read_late[1:], False)
        return np.nan_to_num(seconds), decodes, context, whole

    def prompts_computed(self, prompts: Floats, cached: Floats) -> tuple[Floats, Floats]:
        """Prompt tokens that were computed, and the tokens that those look at, of every step.

        What the prefix cache held of a prompt is looked at and not computed. Of a request that lost its pages it is not
        known what was still held when it came back.
        """
        count = len(self.start_s)
        order = np.lexsort((self._bunch, self._owner))
        before, after = order[:-1], order[1:]
        missed = self._bunch[after] - self._bunch[before]
        away_s = self._times[after] - self._times[before]
        same = self._owner[after] == self._owner[before]
        usual_s = float(np.median(away_s[same])) if same.any() else np.inf
        resumed = after[same & (missed >= RESUMED_BUNCHES) & (away_s > RESUMED_GAPS * usual_s)]
        place = np.concatenate([self._bunch[self._first], self._bunch[resumed]])
        tokens = np.concatenate([prompts[self._owner[self._first]], self._length[resumed]])
        held = np.concatenate([cached[self._owner[self._first]], np.zeros(len(resumed))])
        looked_at = tokens * (tokens + 1) / 2 - held * (held + 1) / 2
        return (
            np.bincount(place, weights=tokens - held, minlength=count).astype(np.float64),
            np.bincount(place, weights=looked_at, minlength=count).astype(np.float64),
        )

    def ahead_steps(self, table: RecordTable, rows: Ints) -> int | None:
        """Steps between the one that runs when a request arrives and the one that ends with its first token.

        The most frequent number, of the third of requests that come longest before the end of the running step: what
        comes shortly before it may miss it on its way.
        """
        place = np.full(len(table.t_send_s), -1, np.int64)
        place[self._owner[self._first]] = self._bunch[self._first]
        sent = table.t_send_s[rows]
        running = np.searchsorted(self.start_s, sent)
        inside = (running > 0) & (running < len(self.start_s))
        rows, sent, running = rows[inside], sent[inside], running[inside]
        left_s = self.start_s[running] - sent
        busy = self.steps()[3][running]
        later = (place[rows] - running - 1)[busy]
        later = later[np.argsort(-left_s[busy], kind="stable")][: max(FEWEST_ARRIVALS, len(later) // 3)]
        later = later[later >= 0]
        return int(np.bincount(later).argmax()) if len(later) >= FEWEST_ARRIVALS else None

    def launches_s(self, prompts: Floats) -> Floats:
        """How long a server that schedules ahead took to launch steps with prompts, ``(n,)``.

        It launches one while the step before runs, and hands that one's tokens out only then: the step before lasts as
        long as the launch. Counted are those behind three steps without prompts.
        """
        seconds, _, _, whole = self.steps()
        prompt, _ = self.prompts_computed(prompts, np.zeros_like(prompts))
        calm = whole & (prompt == 0)
        if not calm.any():
            return np.zeros(0)
        follows = whole & (prompt > 0)
        place = np.flatnonzero(calm[:-3] & calm[1:-2] & calm[2:-1] & follows[3:]) + 2
        found = seconds[place]
        shown: Floats = found[found > LEAST_LAUNCH * np.median(seconds[calm])]
        return shown if len(shown) > len(found) / 2 else np.zeros(0)

    def token_s(self) -> float | None:
        """Median time from token to token of one bunch."""
        starts = np.flatnonzero(np.diff(self._bunch, prepend=-1))
        sizes = np.diff(np.append(starts, len(self._times)))
        crowded = sizes >= CROWD
        if not crowded.any():
            return None
        spans = (self._times[starts + sizes - 1] - self._times[starts])[crowded]
        return float(np.median(spans / (sizes[crowded] - 1)))


def bunches_of(table: RecordTable, kept_tokens: int | None) -> tuple[Bunches | None, Floats, Ints]:
    """The bunches of a run, the prompt tokens of all its requests, and the rows of those that are in bunches."""
    prompts = np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens)
    usable = table.ok & ~np.isnan(table.t_first_s) & ~table.in_bursts & ~np.isnan(prompts) & (table.chunk_count > 1)
    rows = np.flatnonzero(usable)
    times, owner, tokens = _chunks(table, rows)
    if len(times) < 2:
        return None, prompts, rows
    made = table.output_tokens - table.end_tokens
    return Bunches(times, owner, tokens, prompts, np.nan_to_num(made), kept_tokens), prompts, rows


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
