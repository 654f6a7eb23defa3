"""The eviction kernels in Triton's interpreter, against the same arithmetic in torch."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

import numpy as np

from kvload.servers.kernels import attention
from kvload.servers.kernels import eviction as plain
from kvload.servers.kernels.triton import eviction
from kvload.servers.plugins.vllm.eviction import steps
from kvload.servers.plugins.vllm.eviction.h2o import H2O
from kvload.servers.plugins.vllm.eviction.h2o_prompt import H2OPrompt
from kvload.servers.plugins.vllm.eviction.policy import Policy
from kvload.servers.plugins.vllm.eviction.snapkv import SnapKV
from kvload.servers.plugins.vllm.eviction.streamingllm import StreamingLLM

BLOCK = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

pytestmark = pytest.mark.filterwarnings("ignore")


class Requests:
    """Some requests in the middle of their lives, in a pool with strange strides and random content.

    Args:
        policy: of eviction.
        after, new, prompt: of each request.
        heads, group, size: of the model.
    """

    def __init__(
        self, policy: Policy, after: list[int], new: list[int], prompt: list[int], heads: int, group: int, size: int
    ) -> None:
        torch.manual_seed(len(after) + size)
        self.policy, self.heads, self.group, self.size = policy, heads, group, size
        self.scale = size**-0.5
        arrays = [np.array(values, dtype=np.int64) for values in (after, new, prompt)]
        self.rows = steps.plan(policy, *arrays)
        blocks = [-(-tokens // BLOCK) for tokens in after]
        table = torch.zeros(len(after), max(blocks) + 3, dtype=torch.int32)
        order = torch.randperm(sum(blocks)) + 1
        for row, count in enumerate(blocks):
            table[row, :count] = order[sum(blocks[:row]) : sum(blocks[:row]) + count]
        # Within a page tokens come before heads, and behind it is room for scores: as vLLM lays it out.
        content = heads * BLOCK * 2 * size
        pool = torch.randn(sum(blocks) + 1, content + heads * BLOCK + 8)
        pages = pool[:, :content].view(-1, BLOCK, heads, 2 * size).transpose(1, 2)
        score = pool[:, content : content + heads * BLOCK].view(-1, heads, BLOCK)
        score.abs_()
        self.pool = pool.to(DEVICE)
        pages = self.pool[:, :content].view(-1, BLOCK, heads, 2 * size).transpose(1, 2)
        score = self.pool[:, content : content + heads * BLOCK].view(-1, heads, BLOCK)
        self.pages = eviction.Pages(pages[..., :size], pages[..., size:], score)
        self.query = torch.randn(sum(new), heads * group, size).to(DEVICE)
        first = torch.tensor([0, *np.cumsum(new)], dtype=torch.int32)
        as_int = [torch.tensor(x, dtype=torch.int32) for x in (after, self.rows.prompt)]
        gone = [torch.tensor(x, dtype=torch.int32) for x in (self.rows.first_before, self.rows.first_after)]
        self.first = first.tolist()
        self.on_device = eviction.Rows(*(x.to(DEVICE) for x in (table, as_int[0], first, as_int[1], *gone)))

    def slots(self, row: int, to: int | None = None) -> torch.Tensor:
        """Kept slots of a row."""
        return torch.arange(int(self.rows.first_before[row]) * BLOCK, int(self.rows.after[row]) if to is None else to)

    def read(self, view: torch.Tensor, row: int, slots: torch.Tensor) -> torch.Tensor:
        """Content ``(heads, slots, ...)`` of some slots of a row."""
        table = self.on_device.table[row].cpu()
        return view.cpu()[table[slots // BLOCK].long(), :, slots % BLOCK].transpose(0, 1)

    def attention(self, row: int, slots: torch.Tensor, recent: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights ``(heads, group, queries, slots)`` of a row's queries, and log sums ``(heads * group, queries)``."""
        position = torch.arange(int(self.rows.before[row]), int(self.rows.after[row]))[:, None]
        query = self.query.cpu()[self.first[row] : self.first[row + 1]]
        mask = attention.Sight(recent=recent).mask(position, slots, torch.float32)
        key = self.read(self.pages.key, row, slots)[None]
        scores = attention.scores(attention.by_head(query, self.heads) * self.scale, key, mask[None, None, None], None)
        return scores[0].softmax(-1), scores[0].logsumexp(-1).flatten(0, 1)

    def lse(self, recent: int | None = None) -> torch.Tensor:
        """Log sums ``(heads * group, tokens)`` of the whole batch."""
        return torch.cat([self.attention(r, self.slots(r), recent)[1] for r in range(len(self.rows.after))], 1).to(
            DEVICE
        )


def batch(policy: Policy, heads: int = 2, group: int = 4, size: int = 64) -> Requests:
    """Prompts in one chunk, in the middle, at their end and beyond; decoding; an idle row of a graph."""
    prompt = [90, 200, 200, 200, 75, 150, 200, 40]
    after = [90, 120, 200, 201, 132, 191, 185, 17]
    new = [90, 70, 30, 1, 1, 1, 1, 17]
    return Requests(policy, after, new, prompt, heads, group, size)


POLICIES = [SnapKV(BLOCK, 64, 24, 5), H2O(BLOCK, 64, 20), SnapKV(BLOCK, 40, 1, 1), H2OPrompt(BLOCK, 64, 20)]


@pytest.mark.parametrize("policy", [*POLICIES, StreamingLLM(BLOCK, 4, 50)])
def test_tables_begin_at_the_first_kept_block(policy: Policy) -> None:
    requests = batch(policy)
    rows = len(requests.rows.after)
    table = torch.full((rows, 40), -1, dtype=torch.int32, device=DEVICE)
    held = torch.zeros(rows, dtype=torch.int32, device=DEVICE)
    eviction.shift(requests.on_device, BLOCK, table, held)
    assert (requests.rows.first_before > 0).any()
    assert held.tolist() == requests.rows.held.tolist()
    for row in range(rows):
        first, last = int(requests.rows.first_before[row]), -(-int(requests.rows.after[row]) // BLOCK)
        assert table[row, : last - first].tolist() == requests.on_device.table[row, first:last].tolist()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("heads", "group", "size"), [(2, 4, 64), (1, 3, 32), (3, 1, 80)])
def test_scores_are_the_weights_of_the_judging_queries(policy: Policy, heads: int, group: int, size: int) -> None:
    requests = batch(policy, heads, group, size)
    rows = requests.rows
    before = [requests.read(requests.pages.score, row, requests.slots(row)).clone() for row in range(len(rows.after))]
    eviction.score(
        requests.query, requests.pages, requests.on_device, requests.lse(),
        scale=requests.scale, judges=policy.judges, most_new=90, most_held=200,
    )  # fmt: skip
    for row in range(len(rows.after)):
        slots = requests.slots(row)
        got = requests.read(requests.pages.score, row, slots)
        low, high = int(rows.judge_from[row]), int(rows.judge_to[row])
        if high <= low:
            assert torch.equal(got, before[row])
            continue
        weights = requests.attention(row, slots)[0][:, :, low - int(rows.before[row]) : high - int(rows.before[row])]
        old = torch.where(slots < int(rows.scored_before[row]), before[row], 0.0)
        expected = torch.where(slots < high, old + weights.sum((1, 2)), before[row])
        torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-5)


def equal_scores(requests: Requests) -> None:
    """Many slots with the same score, so that their order decides."""
    requests.pages.score.copy_((requests.pages.score * 3).round())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("heads", "size"), [(2, 64), (3, 80)])
def test_compaction_keeps_what_torch_would_keep(policy: Policy, ties: bool, heads: int, size: int) -> None:
    requests = batch(policy, heads, 2, size)
    if ties:
        equal_scores(requests)
    rows = requests.rows
    count = len(rows.after)
    whole = requests.pool.clone()
    content = []
    for row in range(count):
        views = (requests.pages.score, requests.pages.key, requests.pages.value)
        content.append([requests.read(view, row, requests.slots(row)) for view in views])
    counts = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    scratch = torch.zeros(count, heads, 2 * 80, dtype=torch.int32, device=DEVICE)
    eviction.compact(
        requests.pages, requests.on_device, scratch, counts,
        judges=policy.judges, newest=policy.newest, smoothing=policy.smoothing, most_held=200,
    )  # fmt: skip
    compacted = 0
    for row in range(count):
        score, key, value = content[row]
        low = int(rows.first_before[row]) * BLOCK
        stay = int(rows.first_after[row]) * BLOCK
        end = int(rows.compact_to[row])
        if stay == low:
            now = requests.read(requests.pages.key, row, requests.slots(row))
            assert torch.equal(now, key)
            continue
        compacted += heads
        older = plain.mean_over_neighbours(score[:, : end - low - policy.newest], policy.smoothing)
        keeps = plain.survivors(older, end - stay - policy.newest)
        slots = torch.arange(stay, int(rows.after[row]))
        for head in range(heads):
            chosen = [
                *keeps[head].nonzero()[:, 0].tolist(),
                *range(end - low - policy.newest, int(rows.after[row]) - low),
            ]
            for view, old in ((requests.pages.key, key), (requests.pages.value, value)):
                got = requests.read(view, row, slots)[head]
                assert sorted(got.tolist()) == sorted(old[head, chosen].tolist())
            # A token's key, value and score stay together, and the newest stay where they are.
            scores = requests.read(requests.pages.score, row, slots)[head]
            where = {tuple(k): place for place, k in enumerate(key[head].tolist())}
            for place, k in enumerate(requests.read(requests.pages.key, row, slots)[head].tolist()):
                assert float(scores[place]) == float(score[head, where[tuple(k)]])
            newest = slice(end - policy.newest - low, None)
            tail = int(rows.after[row]) - end + policy.newest
            assert torch.equal(requests.read(requests.pages.key, row, slots)[head, -tail:], key[head, newest])
    assert compacted > 0
    assert int(counts[0]) == compacted
    assert int(counts[1]) == heads * int(
        (rows.compact_to - rows.first_after * BLOCK)[rows.first_after > rows.first_before].sum()
    )
    assert torch.equal(requests.pool[0], whole[0])


@pytest.mark.parametrize(("start", "recent"), [(4, 50), (20, 33), (1, 16), (0, 50), (4, 500)])
@pytest.mark.parametrize(("heads", "group", "size"), [(2, 4, 64), (1, 3, 80)])
def test_the_first_tokens_are_merged_into_windowed_attention(
    start: int, recent: int, heads: int, group: int, size: int
) -> None:
    policy = StreamingLLM(BLOCK, start, recent)
    requests = batch(policy, heads, group, size)
    outs, expected = [], []
    for row in range(len(requests.rows.after)):
        near, everything = requests.slots(row), torch.arange(int(requests.rows.after[row]))
        value = requests.read(requests.pages.value, row, near)
        weights, _ = requests.attention(row, near, recent)
        outs.append(torch.einsum("hgqk,hkd->qhgd", weights, value).flatten(1, 2))
        position = torch.arange(int(requests.rows.before[row]), int(requests.rows.after[row]))[:, None]
        mask = attention.Sight(recent=recent, sinks=start).mask(position, everything, torch.float32)[None, None, None]
        key, value = (requests.read(view, row, everything)[None] for view in (requests.pages.key, requests.pages.value))
        query = attention.by_head(requests.query.cpu()[requests.first[row] : requests.first[row + 1]], heads)
        scores = attention.scores(query * requests.scale, key, mask, None)
        expected.append(attention.by_token(attention.weighted(scores.softmax(-1), value)))
    out = torch.cat(outs).to(DEVICE)
    eviction.add_start(
        requests.query, out, requests.lse(recent), requests.pages, requests.on_device,
        scale=requests.scale, start=start, recent=recent, most_new=90,
    )  # fmt: skip
    torch.testing.assert_close(out.cpu(), torch.cat(expected), rtol=1e-4, atol=1e-5)
