"""Token eviction over a paged cache: block tables that begin later, scores, compaction, attention sinks.

Launches depend on a batch's shape only, never on its data: a captured graph replays them, and a program with nothing to
do ends at once. All tensors that decide what is done lie on the device.

Shapes: ``R`` rows (requests) of a batch, ``H`` key-value heads, ``G`` query heads of each, ``D`` head size. Pages are
addressed by the strides of a view ``(blocks, H, block tokens, D)`` of the keys and one of the values; scores by those
of a float32 view ``(blocks, H, block tokens)``. Token ``i`` of a row has slot ``i``: entry ``i // block`` of its block
table, place ``i % block`` in that block. Counts are tokens unless they are called blocks.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kvload.servers.kernels.triton.specialise import kernel


@dataclass(frozen=True)
class Pages:
    """One layer's cache.

    Attributes:
        key, value: views ``(blocks, H, block tokens, D)`` with equal strides, ``D`` contiguous.
        score: float32 ``(blocks, H, block tokens)``, the last axis contiguous.
    """

    key: torch.Tensor
    value: torch.Tensor
    score: torch.Tensor

    @property
    def block(self) -> int:
        """Tokens of a block."""
        return self.key.shape[2]


@dataclass(frozen=True)
class Rows:
    """What the kernels know of a batch's rows; int32 tensors on the device.

    Attributes:
        table: ``(R, blocks)`` each row's blocks by position, those that are gone included.
        after: ``(R,)`` tokens computed once the step is over.
        first_query: ``(R + 1,)`` place of each row's first query in the batch.
        prompt: ``(R,)`` tokens of the prompts.
        first_before, first_after: ``(R,)`` leading blocks gone before the step and after it.
    """

    table: torch.Tensor
    after: torch.Tensor
    first_query: torch.Tensor
    prompt: torch.Tensor
    first_before: torch.Tensor
    first_after: torch.Tensor


@kernel
def _shift(table, table_row, after, first, out, out_row, held, BLOCK: tl.constexpr, TILE: tl.constexpr):
    row = tl.program_id(0)
    gone = tl.load(first + row)
    tokens = tl.load(after + row)
    blocks = (tokens + BLOCK - 1) // BLOCK - gone
    for start in tl.range(0, blocks, TILE):
        place = start + tl.arange(0, TILE)
        inside = place < blocks
        entry = tl.load(table + row * table_row + place + gone, mask=inside, other=0)
        tl.store(out + row * out_row + place, entry, mask=inside)
    tl.store(held + row, tokens - gone * BLOCK)


def shift(rows: Rows, block: int, table: torch.Tensor, held: torch.Tensor) -> None:
    """Write block tables that begin at the first kept block, and the lengths that go with them.

    Args:
        block: tokens of a block.
        table: ``(R, blocks)`` int32, written.
        held: ``(R,)`` int32, written: tokens from the first kept block to the newest.
    """
    tile = 128 if block > 1 else 2048
    _shift[(rows.after.shape[0],)](
        rows.table, rows.table.stride(0), rows.after, rows.first_before, table, table.stride(0), held, block, tile
    )


@kernel
def _score(
    query, query_token, query_head, key, key_block, key_head, key_token, score, score_block, score_head,
    table, table_row, after, first_query, prompt, first_before, lse, lse_head, scale, judges,
    ALL: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr,
    D_PAD: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    q_start = tl.load(first_query + row)
    new = tl.load(first_query + row + 1) - q_start
    end = tl.load(after + row)
    before = end - new
    length = tl.load(prompt + row)
    if ALL:
        judge_from = before
        judge_to = end
        scored = before
    else:
        judge_from = tl.maximum(before, length - judges)
        judge_to = tl.minimum(end, length)
        scored = tl.where(before > length - judges, before, 0)
    if judge_to > judge_from:
        low = tl.load(first_before + row) * BLOCK
        d = tl.arange(0, D_PAD)
        member = tl.arange(0, QUERIES * GROUP_PAD)
        which = member // GROUP_PAD
        q_head = head * GROUP + member % GROUP_PAD
        shares = member % GROUP_PAD < GROUP
        for start in tl.range(low + tl.program_id(2) * KEYS, judge_to, KEYS * tl.num_programs(2)):
            slot = start + tl.arange(0, KEYS)
            inside = slot < judge_to
            block = tl.load(table + row * table_row + slot // BLOCK, mask=inside, other=0).to(tl.int64)
            k_at = key + block * key_block + head * key_head + (slot % BLOCK) * key_token
            k = tl.load(k_at[:, None] + d[None, :], mask=inside[:, None] & (d[None, :] < D), other=0.0)
            total = tl.zeros((KEYS,), tl.float32)
            # Queries before this tile's first key see nothing of it.
            skip = (tl.maximum(start, judge_from) - judge_from) // QUERIES * QUERIES
            for at in tl.range(judge_from + skip, judge_to, QUERIES):
                position = at + which
                real = (position < judge_to) & shares
                place = (q_start + position - before).to(tl.int64)
                q_at = query + place * query_token + q_head * query_head
                q = tl.load(q_at[:, None] + d[None, :], mask=real[:, None] & (d[None, :] < D), other=0.0)
                norm = tl.load(lse + q_head * lse_head + place, mask=real, other=0.0)
                s = tl.dot(q, tl.trans(k)).to(tl.float32) * scale
                seen = (slot[None, :] <= position[:, None]) & real[:, None] & inside[None, :]
                total += tl.sum(tl.where(seen, tl.exp(s - norm[:, None]), 0.0), 0)
            at = score + block * score_block + head * score_head + slot % BLOCK
            old = tl.load(at, mask=inside & (slot < scored), other=0.0)
            tl.store(at, old + total, mask=inside)


def score(
    query: torch.Tensor,
    pages: Pages,
    rows: Rows,
    lse: torch.Tensor,
    *,
    scale: float,
    judges: int | None,
    most_new: int,
    most_held: int,
) -> None:
    """Add to each slot's score the attention weights it receives from the step's judging queries.

    Weights are summed over queries and over the query heads that share a key. A slot that no earlier step of the
    request has scored begins anew, whatever its page held before.

    Args:
        query: ``(tokens, H * G, D)`` of the batch.
        lse: float32 ``(H * G, tokens)``, log of the sum of exponentials of each query's scaled scores.
        scale: on the scores.
        judges: how many last queries of a prompt count, or None for all queries.
        most_new: upper bound on the queries of a row.
        most_held: upper bound on the slots of a row that are read; more of them take longer, not wrong.
    """
    heads, size = pages.key.shape[1], pages.key.shape[3]
    group = query.shape[1] // heads
    padded = triton.next_power_of_2(group)
    keys = 64
    # Captured steps launch for every row: few programs where only the end of a prompt has anything to do.
    most = 1024 if most_new > 1 else 16 if judges is None else 2
    split = max(1, min(-(-most_held // keys), most))
    _score[(rows.after.shape[0], heads, split)](
        query, query.stride(0), query.stride(1), pages.key, *pages.key.stride()[:3], pages.score,
        *pages.score.stride()[:2], rows.table, rows.table.stride(0), rows.after, rows.first_query, rows.prompt,
        rows.first_before, lse, lse.stride(0), scale, 0 if judges is None else judges,
        judges is None, group, padded, pages.block, size, triton.next_power_of_2(size), _queries(most_new, padded),
        keys,
    )  # fmt: skip


def _queries(most_new: int, group: int) -> int:
    """Queries of a tile, which with their group make the 16 rows that matrix products want at least, or many more."""
    return max(1, (16 if most_new == 1 else 128) // group)


@triton.jit
def _smoothed(
    score, score_block, score_head, head, table_at, slot, low, high, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """Mean over neighbouring slots as ordered bits; zero outside [low, high)."""
    total = tl.zeros(slot.shape, tl.float32)
    for step in tl.static_range(WIDTH):
        near = slot + step - WIDTH // 2
        inside = (near >= low) & (near < high) & (slot < high)
        block = tl.load(table_at + near // BLOCK, mask=inside, other=0).to(tl.int64)
        total += tl.load(score + block * score_block + head * score_head + near % BLOCK, mask=inside, other=0.0)
    return (total / WIDTH).to(tl.int32, bitcast=True)


@kernel
def _compact(
    key, value, key_block, key_head, key_token, score, score_block, score_head, table, table_row, after, prompt,
    first_before, first_after, scratch, scratch_row, scratch_head, counts, newest,
    ALL: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr, WIDTH: tl.constexpr,
    TILE: tl.constexpr, MOVES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    first = tl.load(first_before + row)
    last = tl.load(first_after + row)
    if last > first:
        end = tl.load(after + row)
        if not ALL:
            end = tl.minimum(end, tl.load(prompt + row))
        low = first * BLOCK
        stay = last * BLOCK
        high = end - newest
        wanted = end - stay - newest
        table_at = table + row * table_row
        # The largest threshold that at least ``wanted`` scores reach, bit by bit: scores are not negative, so that
        # their bits are ordered as they are. A threshold that exactly as many reach needs no further bit.
        threshold = 0
        reached = high - low
        bit = 30
        while (bit >= 0) & (reached != wanted):
            trial = threshold | (1 << bit)
            count = 0
            for start in tl.range(low, high, TILE):
                slot = start + tl.arange(0, TILE)
                bits = _smoothed(score, score_block, score_head, head, table_at, slot, low, high, BLOCK, WIDTH)
                count += tl.sum(((bits >= trial) & (slot < high)).to(tl.int32), 0)
            if count >= wanted:
                threshold = trial
                reached = count
            bit -= 1
        # Of equal scores at the threshold, the earlier ones stay.
        above = 0
        if reached != wanted:
            for start in tl.range(low, high, TILE):
                slot = start + tl.arange(0, TILE)
                bits = _smoothed(score, score_block, score_head, head, table_at, slot, low, high, BLOCK, WIDTH)
                above += tl.sum(((bits > threshold) & (slot < high)).to(tl.int32), 0)
            ties = wanted - above
        else:
            ties = reached
        # Survivors of dying slots are numbered; so are the slots of dropped tokens among those that stay; each of the
        # former moves into the latter with its number.
        mine = scratch + row * scratch_row + head * scratch_head
        equal = 0
        moving = 0
        holes = 0
        for start in tl.range(low, high, TILE):
            slot = start + tl.arange(0, TILE)
            real = slot < high
            bits = _smoothed(score, score_block, score_head, head, table_at, slot, low, high, BLOCK, WIDTH)
            at = (real & (bits == threshold)).to(tl.int32)
            kept = real & ((bits > threshold) | ((at == 1) & (equal + tl.cumsum(at, 0) <= ties)))
            equal += tl.sum(at, 0)
            moves = (kept & (slot < stay)).to(tl.int32)
            opens = (real & (kept == 0) & (slot >= stay)).to(tl.int32)
            tl.store(mine + moving + tl.cumsum(moves, 0) - 1, slot, mask=moves == 1)
            tl.store(mine + scratch_head // 2 + holes + tl.cumsum(opens, 0) - 1, slot, mask=opens == 1)
            moving += tl.sum(moves, 0)
            holes += tl.sum(opens, 0)
        tl.debug_barrier()
        d = tl.arange(0, D_PAD)
        for start in tl.range(0, moving, MOVES):
            place = start + tl.arange(0, MOVES)
            inside = place < moving
            source = tl.load(mine + place, mask=inside, other=0)
            target = tl.load(mine + scratch_head // 2 + place, mask=inside, other=0)
            from_block = tl.load(table_at + source // BLOCK, mask=inside, other=0).to(tl.int64)
            to_block = tl.load(table_at + target // BLOCK, mask=inside, other=0).to(tl.int64)
            from_at = from_block * key_block + head * key_head + (source % BLOCK) * key_token
            to_at = to_block * key_block + head * key_head + (target % BLOCK) * key_token
            wide = inside[:, None] & (d[None, :] < D)
            k = tl.load(key + from_at[:, None] + d[None, :], mask=wide)
            v = tl.load(value + from_at[:, None] + d[None, :], mask=wide)
            tl.store(key + to_at[:, None] + d[None, :], k, mask=wide)
            tl.store(value + to_at[:, None] + d[None, :], v, mask=wide)
            s = tl.load(score + from_block * score_block + head * score_head + source % BLOCK, mask=inside)
            tl.store(score + to_block * score_block + head * score_head + target % BLOCK, s, mask=inside)
        tl.atomic_add(counts, 1)
        tl.atomic_add(counts + 1, end - stay)
        tl.atomic_add(counts + 2, moving)


def compact(
    pages: Pages,
    rows: Rows,
    scratch: torch.Tensor,
    counts: torch.Tensor,
    *,
    judges: int | None,
    newest: int,
    smoothing: int,
    most_held: int,
) -> None:
    """Give up the blocks that the step makes go: their survivors move into the slots of tokens that are dropped.

    In each row and head, of all kept slots but the newest, those with the highest scores survive, as many as fit; of
    equal scores the earlier. A row whose blocks all stay is left alone.

    Args:
        scratch: int32 ``(R, H, 2 * n)`` for slots that move, ``n`` at least as many as stay of any row.
        counts: int64 ``(3,)``: compactions, slots kept and slots moved of all rows and heads are added.
        judges: as for :func:`score`; where not None, generated tokens take no part.
        newest: slots at the end that stay whatever their score.
        smoothing: odd width of the mean over neighbouring slots that scores are compared by.
        most_held: as many slots of a row as are looked at together; more take longer, not wrong.
    """
    heads, size = pages.key.shape[1], pages.key.shape[3]
    tile = min(8192, max(256, triton.next_power_of_2(most_held)))
    _compact[(rows.after.shape[0], heads)](
        pages.key, pages.value, *pages.key.stride()[:3], pages.score, *pages.score.stride()[:2],
        rows.table, rows.table.stride(0), rows.after, rows.prompt, rows.first_before, rows.first_after,
        scratch, scratch.stride(0), scratch.stride(1), counts, newest,
        judges is None, pages.block, size, triton.next_power_of_2(size), smoothing, tile, 16,
        num_warps=4 if tile <= 2048 else 16,
    )  # fmt: skip


@kernel
def _add_start(
    query, query_token, query_head, out, out_token, out_head, lse, lse_head,
    key, value, key_block, key_head, key_token, table, table_row, after, first_query, scale, start, recent,
    GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, BLOCK: tl.constexpr, D: tl.constexpr, D_PAD: tl.constexpr,
    STARTS: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    head = tl.program_id(1)
    q_start = tl.load(first_query + row)
    new = tl.load(first_query + row + 1) - q_start
    end = tl.load(after + row)
    before = end - new
    first = tl.program_id(2) * QUERIES
    # Only queries whose window has left the start behind lack something of it.
    if (first < new) & (tl.minimum(before + first + QUERIES, end) - 1 >= recent):
        d = tl.arange(0, D_PAD)
        slot = tl.arange(0, STARTS)
        block = tl.load(table + row * table_row + slot // BLOCK, mask=slot < start, other=0).to(tl.int64)
        at = block * key_block + head * key_head + (slot % BLOCK) * key_token
        there = (slot < start)[:, None] & (d[None, :] < D)
        k = tl.load(key + at[:, None] + d[None, :], mask=there, other=0.0)
        v = tl.load(value + at[:, None] + d[None, :], mask=there, other=0.0)
        member = tl.arange(0, QUERIES * GROUP_PAD)
        index = first + member // GROUP_PAD
        q_head = head * GROUP + member % GROUP_PAD
        position = before + index
        place = (q_start + index).to(tl.int64)
        real = (index < new) & (position >= recent) & (member % GROUP_PAD < GROUP)
        wide = real[:, None] & (d[None, :] < D)
        q = tl.load(query + (place * query_token + q_head * query_head)[:, None] + d[None, :], mask=wide, other=0.0)
        s = tl.dot(q, tl.trans(k)).to(tl.float32) * scale
        seen = (slot < start)[None, :] & (slot[None, :] <= position[:, None] - recent)
        s = tl.where(seen, s, -float("inf"))
        near = tl.load(lse + q_head * lse_head + place, mask=real, other=0.0)
        top = tl.maximum(near, tl.max(s, 1))
        weight = tl.exp(s - top[:, None])
        share = tl.exp(near - top)
        total = share + tl.sum(weight, 1)
        out_at = out + (place * out_token + q_head * out_head)[:, None] + d[None, :]
        old = tl.load(out_at, mask=wide, other=0.0).to(tl.float32)
        added = tl.dot(weight.to(v.dtype), v).to(tl.float32)
        tl.store(out_at, ((old * share[:, None] + added) / total[:, None]).to(out.dtype.element_ty), mask=wide)


def add_start(
    query: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    pages: Pages,
    rows: Rows,
    *,
    scale: float,
    start: int,
    recent: int,
    most_new: int,
) -> None:
    """Let queries that attended to their window see the first tokens as well.

    The two softmaxes, over disjoint tokens, are merged by their sums (as in FlashAttention, arXiv 2205.14135).

    Args:
        query: ``(tokens, H * G, D)`` of the batch.
        out: ``(tokens, H * G, D)`` attention over each query's newest ``recent`` tokens; updated.
        lse: float32 ``(H * G, tokens)`` of that attention.
        scale: on the scores.
        start: first tokens seen by all.
        recent: width of the window, the query included.
        most_new: upper bound on the queries of a row.
    """
    if start == 0:
        return
    heads, size = pages.key.shape[1], pages.key.shape[3]
    group = query.shape[1] // heads
    padded = triton.next_power_of_2(group)
    queries = _queries(most_new, padded)
    _add_start[(rows.after.shape[0], heads, -(-most_new // queries))](
        query, query.stride(0), query.stride(1), out, out.stride(0), out.stride(1), lse, lse.stride(0),
        pages.key, pages.value, *pages.key.stride()[:3], rows.table, rows.table.stride(0), rows.after,
        rows.first_query, scale, start, recent,
        group, padded, pages.block, size, triton.next_power_of_2(size), max(16, triton.next_power_of_2(start)), queries,
    )  # fmt: skip
