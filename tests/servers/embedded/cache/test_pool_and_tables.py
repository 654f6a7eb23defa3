"""The page allocator, the tables and the batches: no page is lost, held twice or left out."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from kvload.servers.embedded.account.head_tables import HIGH, LOW, HeadTables
from kvload.servers.embedded.account.pages import PageList
from kvload.servers.embedded.account.tables import BlockTables
from kvload.servers.embedded.cache.batches import batches
from kvload.servers.embedded.cache.pool import PagePool


class PoolMachine(RuleBasedStateMachine):
    """Takes and gives in any order, beside a plain set of free pages."""

    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PageList(40)
        self.free = set(range(40))

    @rule(target=taken, count=st.integers(0, 25))
    def take(self, count: int) -> list[int]:
        pages = self.pool.take(count)
        if count > len(self.free):
            assert pages is None
            return []
        assert pages is not None
        found: list[int] = pages.tolist()
        assert len(set(found)) == count
        assert set(found) <= self.free
        self.free -= set(found)
        return found

    @rule(pages=consumes(taken), keep=st.integers(0, 25))
    def give(self, pages: list[int], keep: int) -> None:
        self.pool.give(np.array(pages[keep:], dtype=np.int64))
        self.free |= set(pages[keep:])

    @invariant()
    def accounts_agree(self) -> None:
        assert self.pool.free_pages == len(self.free)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 30)), max_size=40))
def test_block_tables_keep_every_row(steps: list[tuple[int, int, int]]) -> None:
    """Random appends and removals in several rows, against lists."""
    tables, fresh = BlockTables(), iter(range(10**6))
    rows: dict[int, Any] = {}
    expected: dict[int, list[int]] = {}
    for key, add, cut in steps:
        if key not in rows:
            rows[key], expected[key] = tables.open(), []
        pages = [next(fresh) for _ in range(add)]
        tables.append(rows[key], np.array(pages, dtype=np.int64))
        expected[key] += pages
        start = min(cut, len(expected[key]))
        stop = min(start + add // 2, len(expected[key]))
        assert tables.remove(rows[key], start, stop).tolist() == expected[key][start:stop]
        del expected[key][start:stop]
        for other, row in rows.items():
            assert tables.row(row).tolist() == expected[other]
    for key, row in rows.items():
        assert tables.close(row).tolist() == expected[key]


def test_block_tables_use_rows_again() -> None:
    tables = BlockTables()
    rows = [tables.open() for _ in range(40)]
    assert len(set(rows)) == 40
    tables.append(rows[3], np.arange(5))
    tables.dropped[rows[3]] = 16
    tables.close(rows[3])
    assert tables.open() == rows[3]
    assert tables.counts[rows[3]] == tables.dropped[rows[3]] == 0


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2), st.integers(0, 1), st.integers(0, 12)), max_size=30))
def test_head_tables_grow_from_both_ends(steps: list[tuple[int, int, int, int]]) -> None:
    """Random appends and returns at both ends of each head, against lists; rows widen without mixing them up."""
    tables, fresh = HeadTables(2, 3), iter(range(10**6))
    row = tables.open()
    expected: dict[tuple[int, int, int], list[int]] = {}
    for layer, head, end, count in steps:
        held = expected.setdefault((layer, head, end), [])
        where = np.zeros((2, 3), dtype=np.int64)
        where[layer, head] = count
        pages = [next(fresh) for _ in range(count)]
        tables.append(row, where, end, np.array(pages, dtype=np.int64))
        held += pages
        keep = len(held) * 2 // 3
        assert tables.take_back(row, layer, head, end, keep).tolist() == held[keep:]
        del held[keep:]
        for (other_layer, other_head, other_end), pages_held in expected.items():
            found = tables.ends(np.array([row]), other_end, -1)[0, other_layer, other_head]
            assert [page for page in found.tolist() if page >= 0] == pages_held
    assert sorted(tables.close(row).tolist()) == sorted(page for held in expected.values() for page in held)
    assert not tables.ends(np.array([row]), HIGH, -1).size
    assert not tables.ends(np.array([row]), LOW, -1).size


@given(st.lists(st.integers(0, 300), max_size=60), st.integers(1, 200))
def test_batches_hold_everyone_once_and_are_bounded(sizes: list[int], limit: int) -> None:
    found = batches(np.array(sizes, dtype=np.int64), limit)
    assert sorted(index for part in found for index in part.tolist()) == list(range(len(sizes)))
    for part in found:
        largest = max(sizes[index] for index in part.tolist())
        assert len(part) == 1 or len(part) * largest <= limit


def test_cleared_pages_are_zero_in_all_planes() -> None:
    pool = PagePool(10, 32, 2, torch.device("cpu"))
    pool.storage.fill_(7)
    pool.clear(np.array([3, 5]))
    assert int(pool.storage[:, [3, 5]].sum()) == 0
    assert int((pool.storage == 0).sum()) == 2 * 2 * 32


def test_a_pool_without_room_is_refused() -> None:
    from kvload.errors import UsageError
    from kvload.servers.catalogue.asked import parse_method
    from kvload.servers.embedded.cache import build_cache
    from kvload.servers.embedded.cache.api import CacheGeometry

    geometry = CacheGeometry(4, 4, 2, 64, torch.float32, torch.device("cpu"))
    with pytest.raises(UsageError, match="hold no page"):
        build_cache(geometry, parse_method("none"), 1000)
