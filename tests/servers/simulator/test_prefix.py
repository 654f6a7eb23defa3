"""The prefix cache of simulated servers against a pool of single pages, written down plainly, and against no limits."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvload.experiment.prediction.prefixes import prefixes_of
from kvload.servers.embedded.account.base import StepEntry
from kvload.servers.simulator.cluster import Load, Served, serve
from kvload.servers.simulator.prefix import Prefix, PrefixAccount, SharingSequence
from kvload.step_model import StepModel
from tests.servers.simulator.test_replica import load_of, model

PAGE = 16


Key = tuple[object, ...]


@dataclass(frozen=True)
class Prompt:
    """Ids of its blocks of ``size`` tokens, and its tokens; what lies behind the blocks is its own."""

    number: int
    ids: list[int]
    size: int
    length: int

    def page(self, place: int) -> Key:
        """What is in a full page: it is known to be the same where all blocks up to its last token are."""
        last = ((place + 1) * PAGE - 1) // self.size
        return (*self.ids[: last + 1], place, None if last < len(self.ids) else ("own", self.number))


@dataclass(eq=False)
class Page:
    """A page of the reference: what is in it, and how many hold it."""

    content: Key | None = None
    users: int = 0


@dataclass(eq=False)
class Request:
    prompt: Prompt
    pages: list[Page] = field(default_factory=list)
    length: int = 0


class Reference:
    """Every page by itself, in a queue of free ones, as vLLM does it."""

    def __init__(self, pages: int) -> None:
        self.free = [Page() for _ in range(pages)]
        self.known: dict[Key, list[Page]] = {}

    def open(self, prompt: Prompt) -> Request:
        request = Request(prompt)
        for place in range((prompt.length - 1) // PAGE):
            pages = self.known.get(prompt.page(place))
            if not pages:
                break
            if not pages[0].users:
                self.free.remove(pages[0])
            pages[0].users += 1
            request.pages.append(pages[0])
        request.length = len(request.pages) * PAGE
        return request

    def advance(self, request: Request, count: int) -> bool:
        """Take pages for the tokens, and note what is in those that are full."""
        needed = -(-(request.length + count) // PAGE) - len(request.pages)
        if needed > len(self.free):
            return False
        for _ in range(needed):
            page = self.free.pop(0)
            self._forget(page)
            page.users = 1
            request.pages.append(page)
        for place in range(request.length // PAGE, (request.length + count) // PAGE):
            page = request.pages[place]
            if page.content is None:
                # What was generated is like nothing else.
                is_prompt = (place + 1) * PAGE <= request.prompt.length
                page.content = request.prompt.page(place) if is_prompt else ("answer", id(request), place)
                self.known.setdefault(page.content, []).append(page)
        request.length += count
        return True

    def close(self, request: Request) -> None:
        for page in reversed(request.pages):
            page.users -= 1
            if not page.users:
                self.free.insert(0 if page.content is None else len(self.free), page)
        request.pages = []

    def _forget(self, page: Page) -> None:
        if page.content is not None:
            pages = self.known[page.content]
            pages.remove(page)
            if not pages:
                del self.known[page.content]
        page.content = None


def made_prompts(rng: np.random.Generator, count: int, size: int) -> list[Prompt]:
    """Prompts of a tree of blocks, with and without something of their own behind it."""
    prompts = []
    for number in range(count):
        ids = [int(rng.integers(0, 3)) for _ in range(rng.integers(0, 6))]
        ids += [1000 + number] if rng.random() < 0.7 else []
        # As in traces, a block that is not full has an id of its own.
        own = bool(ids) and ids[-1] >= 1000
        length = len(ids) * size + int(rng.integers(-size // 2 if own else 0, size // 2 + 1))
        prompts.append(Prompt(number, ids, size, max(5, length)))
    return prompts


def prefixes(prompts: Sequence[Prompt]) -> list[Prefix]:
    found = prefixes_of([one.ids for one in prompts], [one.size for one in prompts], [one.length for one in prompts])
    return found or [()] * len(prompts)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 100_000), size=st.sampled_from([4, 16, 24, 64]), pages=st.integers(30, 90))
def test_requests_one_after_the_other_find_what_single_pages_hold(seed: int, size: int, pages: int) -> None:
    rng = np.random.default_rng(seed)
    # A prompt that ends with a page computes that page again although it is known, and then has it twice.
    prompts = [one for one in made_prompts(rng, 60, size) if one.length % PAGE]
    account, reference = PrefixAccount(pages, PAGE), Reference(pages)
    for prompt, prefix in zip(prompts, prefixes(prompts), strict=True):
        mine, other = account.open_prefix(prefix, prompt.length), reference.open(prompt)
        assert mine.length == other.length
        answer = int(rng.integers(1, 40))
        for count in [*chunks(rng, prompt.length - mine.length), *[1] * answer]:
            assert account.reserve(mine, count) == reference.advance(other, count)
            account.advance([StepEntry(mine, count, prompt.length)])
        account.close(mine)
        account.close(mine)
        reference.close(other)
        assert account.free_pages == pages == len(reference.free)
        assert account.idle_pages == sum(page.content is not None for page in reference.free)


def chunks(rng: np.random.Generator, tokens: int) -> list[int]:
    found = []
    while tokens:
        found.append(min(tokens, int(rng.integers(1, 50))))
        tokens -= found[-1]
    return found


VLLM_PAGE, VLLM_POOL = 128, 3584
VLLM_DOCUMENTS = "hjbdgabbbbcieeahaffaghjadcjegdacifaadbfbabbgfegdcgjcfdfdgiddgfjhcjhbfbfeibaedcgd"
VLLM_BLOCKS = "46252356334343424434523365426443336342463255433364644364443434566253323563422243"
VLLM_RESTS = (
    "114 23 40 51 93 72 40 99 20 41 45 43 22 38 58 96 65 43 27 71 66 77 99 124 65 33 57 46 66 109 107 122 "
    "112 112 88 114 78 101 127 36 75 73 99 82 57 34 100 31 120 28 104 91 118 94 119 79 64 114 108 86 45 "
    "108 41 105 90 45 99 100 41 60 90 64 29 111 71 108 90 57 94 73 "
)
VLLM_ANSWERS = "45253425236344644542523566243642425652354434555564244244455342654332232564466645"
VLLM_HITS = "00000025330003304034020300303433004340323250403304044343403434400250323003020002"
"""What vLLM 0.32.0 (CPU build, SmolLM2-135M in float32, 158 MiB of cache: 28 pages of 128 tokens, of which one stands
for none) said of 80 requests, one after the other, behind four warm-ups of 667 tokens: each begins with so many
blocks of a document and ends with so many tokens of its own; how many blocks its prefix cache held."""


def test_vllm_said_of_a_real_trace_what_the_account_finds() -> None:
    sizes = [int(count) for count in VLLM_BLOCKS]
    ids = [[100 * ord(name) + place for place in range(size)] for name, size in zip(VLLM_DOCUMENTS, sizes, strict=True)]
    lengths = [VLLM_PAGE * size + int(rest) for size, rest in zip(sizes, VLLM_RESTS.split(), strict=True)]
    told = prefixes_of(ids, [VLLM_PAGE] * len(ids), lengths) or []
    account = PrefixAccount(VLLM_POOL // VLLM_PAGE - 1, VLLM_PAGE)
    found = []
    for prefix, length, answer in [*[((), 667, 4)] * 4, *zip(told, lengths, map(int, VLLM_ANSWERS), strict=True)]:
        sequence = account.open_prefix(prefix, length)
        found.append(sequence.length // VLLM_PAGE)
        count = length + answer - 1 - sequence.length
        assert account.reserve(sequence, count)
        account.advance([StepEntry(sequence, count, length)])
        account.close(sequence)
    assert "".join(map(str, found[4:])) == VLLM_HITS


@pytest.mark.parametrize("size", [16, 64])
def test_requests_beside_each_other_find_what_single_pages_hold_but_for_what_is_there_twice(size: int) -> None:
    mine, other = 0, 0
    for seed in range(40):
        found = beside_each_other(np.random.default_rng(seed), size, 60 + 4 * seed)
        mine, other = mine + found[0], other + found[1]
    assert mine == pytest.approx(other, rel=0.02)


def beside_each_other(rng: np.random.Generator, size: int, pages: int) -> tuple[int, int]:
    """Tokens found by requests that run at once, end at any time and are preempted: ours, and those of single pages."""
    prompts = made_prompts(rng, 120, size)
    told = prefixes(prompts)
    account, reference = PrefixAccount(pages, PAGE), Reference(pages)
    running: list[tuple[SharingSequence, Request, int]] = []
    totals = [0, 0]
    place = 0
    while place < len(prompts) or running:
        if place < len(prompts) and len(running) < 6 and rng.random() < 0.3:
            length = prompts[place].length
            mine, other = account.open_prefix(told[place], length), reference.open(prompts[place])
            totals = [totals[0] + mine.length, totals[1] + other.length]
            running.append((mine, other, length + int(rng.integers(1, 40))))
            place += 1
        elif running:
            mine, other, end = running.pop(int(rng.integers(0, len(running))))
            count = int(rng.integers(1, 100))
            steps = min(count, end - mine.length), min(count, end - other.length)
            taken = account.reserve(mine, steps[0]), reference.advance(other, steps[1])
            if all(taken):
                account.advance([StepEntry(mine, steps[0], other.prompt.length)])
            if all(taken) and min(mine.length, other.length) < end and rng.random() < 0.95:
                running.append((mine, other, end))
            else:
                account.close(mine)
                reference.close(other)
        assert 0 <= account.idle_pages <= account.free_pages <= pages
    assert account.free_pages == len(reference.free) == pages
    return totals[0], totals[1]


def simulated(load: Load, **changes: object) -> Served:
    return serve(load, model(page_tokens=PAGE, **changes))


def sharing(seed: int, count: int = 60, size: int = 64, gap_s: float = 10.0) -> tuple[Load, list[list[int]]]:
    """Prompts of a tree of blocks, each alone on the server where ``gap_s`` is long."""
    rng = np.random.default_rng(seed)
    prompts = made_prompts(rng, count, size)
    lengths = [one.length for one in prompts]
    load = load_of((gap_s * np.arange(count)).tolist(), lengths, rng.integers(1, 30, count).tolist())
    return replace(load, prefixes=prefixes(prompts)), [one.ids for one in prompts]


def without_limits(ids: Sequence[Sequence[int]], size: int, lengths: Sequence[int]) -> list[int]:
    """Tokens in leading blocks that any earlier prompt began with, in pages, and never the last token."""
    seen: set[tuple[int, ...]] = set()
    found = []
    for blocks, length in zip(ids, lengths, strict=True):
        hit = 0
        while hit < len(blocks) and tuple(blocks[: hit + 1]) in seen:
            hit += 1
        found.append(min(hit * size, (length - 1) // PAGE * PAGE))
        seen.update(tuple(blocks[: end + 1]) for end in range(len(blocks)) if (end + 1) * size <= length)
    return found


def test_a_pool_without_limits_holds_all_that_came_before() -> None:
    load, ids = sharing(3, size=PAGE)
    served = simulated(load, pool_tokens=PAGE * 100_000)
    expected = without_limits(ids, PAGE, load.prompt_tokens.tolist())
    assert [request.cached_tokens for request in served.requests] == expected
    assert served.cached_share == pytest.approx(sum(expected) / load.prompt_tokens.sum())
    assert served.cached_share > 0.3


def test_a_small_pool_holds_less_and_a_server_without_prefix_cache_nothing() -> None:
    load, _ = sharing(4)
    shares = [simulated(load, pool_tokens=PAGE * pages).cached_share for pages in (24, 40, 80, 100_000)]
    assert shares == sorted(shares)
    assert shares[0] < 0.6 * shares[-1]
    for changes in ({"prefix_cache": False}, {"kept_tokens": 128}):
        assert simulated(load, **changes).cached_share == 0.0


def test_what_another_request_computes_is_found_as_far_as_it_has_come() -> None:
    (told, _) = prefixes([Prompt(number, [1, 2, 3, 4], 64, 260) for number in range(2)])
    account = PrefixAccount(100, PAGE)
    first = account.open_prefix(told, 260)
    assert account.reserve(first, 100)
    account.advance([StepEntry(first, 100, 260)])
    second = account.open_prefix(told, 260)
    assert second.length == 96
    assert account.reserve(first, 160)
    assert account.reserve(second, 164)
    account.advance([StepEntry(first, 160, 260), StepEntry(second, 164, 260)])
    # 17 pages of the first, and those of the second that it began before the first had them.
    assert 100 - account.free_pages == 17 + 17 - 6
    account.close(first)
    assert account.open_prefix(told, 260).length == 256


def test_every_server_has_a_cache_of_its_own() -> None:
    prompts = [Prompt(0, [7, 8], 64, 128)] * 4
    load = Load(
        10.0 * np.arange(4.0), np.full(4, 128), np.full(4, 5), prefixes=prefixes(prompts), session=np.arange(4) // 2
    )
    one, two = serve(load, model()), serve(load, model(), replicas=2)
    assert [request.cached_tokens for request in one.requests] == [0, 112, 112, 112]
    assert [request.cached_tokens for request in two.requests] == [0, 0, 112, 112]
    sticky = serve(load, model(), replicas=2, policy="sticky")
    assert sum(request.cached_tokens > 0 for request in sticky.requests) >= 2


def test_what_is_found_is_neither_computed_nor_part_of_a_steps_tokens() -> None:
    prompts = [Prompt(0, [1, 2, 3, 4], 64, 256)] * 2
    load = Load(np.array([0.0, 100.0]), np.full(2, 256), np.full(2, 4), prefixes=prefixes(prompts))
    served = serve(load, model(chunk_tokens=64))
    counted = serve(
        Load(load.arrival_s, load.prompt_tokens, load.output_tokens, np.array([0, 240])), model(chunk_tokens=64)
    )
    assert [request.cached_tokens for request in served.requests] == [0, 240]
    assert served.ttft_s[1] < served.ttft_s[0] / 3
    assert served.ttft_s == pytest.approx(counted.ttft_s)
    assert (served.hits, counted.hits) == ("reckoned", "counted")


def test_pages_that_running_requests_share_are_there_once() -> None:
    """Eight requests of 640 tokens, 576 of them the same: 36 + 8 * 4 pages, and some for their answers."""
    blocks = [[*range(9), 100 + number] for number in range(9)]
    told = prefixes_of(blocks, [64] * 9, [640] * 9)
    load = Load(np.array([0.0] + [50.0] * 8), np.full(9, 640), np.full(9, 40), prefixes=told)
    shared = serve(load, model(pool_tokens=PAGE * (36 + 8 * 8), chunk_tokens=1024))
    alone = serve(
        Load(load.arrival_s, load.prompt_tokens, load.output_tokens),
        model(pool_tokens=PAGE * (36 + 8 * 8), chunk_tokens=1024),
    )
    assert shared.preemptions == 0
    assert np.nanmax(shared.queue_s) < 0.1
    assert np.nanmax(alone.queue_s[1:]) > 5 * np.nanmax(shared.queue_s)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pages=st.integers(40, 120), gap_s=st.sampled_from([0.0, 0.02, 0.2]))
def test_everything_ends_and_every_page_is_free_in_the_end(seed: int, pages: int, gap_s: float) -> None:
    load, _ = sharing(seed, gap_s=gap_s)
    served = simulated(load, pool_tokens=PAGE * pages)
    assert not np.isnan(served.e2e_s).any()
    assert served.replicas[0].account.free_pages == pages
    assert all(0 <= request.cached_tokens < request.prompt_tokens for request in served.requests)


def test_stretches_are_what_prompts_share_and_leave_out_the_rest() -> None:
    blocks = [[1, 2, 3, 9], [1, 2, 3, 8], [1, 2, 7], [5, 2, 3], None, [4]]
    found = prefixes_of(blocks, [10, 10, 10, 10, None, 10], [40, 38, 25, 30, 50, 10])
    assert found is not None
    (twelve, first), (three, second) = found[0]
    assert (first, second) == (20, 30)
    assert found[1] == ((twelve, 20), (three, 30))
    assert found[2] == ((twelve, 20),)
    assert found[3:] == [(), (), ()]
    assert prefixes_of([None, []], [None, None], [5, 5]) is None
    again = prefixes_of([[4]], [10], [10], times=2)
    assert again is not None
    assert [end for _, end in again[0]] == [10]


def test_old_files_of_models_keep_prefixes_unless_they_say_otherwise() -> None:
    old: StepModel = model()
    assert old.prefix_cache is None
    assert old.caches_prefixes
