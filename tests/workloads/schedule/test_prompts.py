"""Made-up prompts: exact lengths, shared blocks, the same ids in every process."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import UsageError
from kvload.workloads.schedule.prompts import PromptSpec, made_up_ids, token_ids
from kvload.workloads.traces.trace import TraceRequest

SPEC = PromptSpec(seed=7)


def blocks(ids: list[int], length: int, size: int = 16, name: str = "r") -> list[int]:
    return token_ids(TraceRequest(id=name, input_length=length, block_ids=ids, block_size=size), SPEC)


@given(st.lists(st.integers(0, 50), max_size=6), st.integers(0, 120), st.integers(1, 32))
def test_the_length_is_exact_and_ids_stay_in_range(ids: list[int], length: int, size: int) -> None:
    found = blocks(ids, length, size)
    assert len(found) == max(length, 1)
    assert all(SPEC.token_low <= token < SPEC.token_high for token in found)


def test_equal_blocks_are_equal_and_others_are_not() -> None:
    one, other = blocks([1, 2, 3], 48), blocks([1, 2, 4], 40, name="other")
    assert one[:32] == other[:32]
    assert one[32:40] != other[32:]
    assert one[:16] != one[16:32]
    assert blocks([2], 16) == one[16:32]


def test_a_partial_block_is_the_beginning_of_the_whole_one() -> None:
    assert blocks([5], 7) == blocks([5], 16)[:7]


def test_what_blocks_do_not_fill_is_the_requests_own() -> None:
    one, other = blocks([1], 40, name="a"), blocks([1], 40, name="b")
    assert one[:16] == other[:16]
    assert one[16:] != other[16:]


def test_requests_without_blocks_share_nothing_but_sessions_share_their_beginning() -> None:
    plain = [token_ids(TraceRequest(id=name, input_length=30), SPEC) for name in "ab"]
    assert len(set(plain[0]) & set(plain[1])) <= 2
    first, second = (
        token_ids(TraceRequest(id=str(n), arrival=n, input_length=n, session="s", turn=turn), SPEC)
        for turn, n in enumerate((20, 50))
    )
    assert second[:20] == first
    added = token_ids(TraceRequest(id="x", input_length=20, session="s", turn=2), SPEC)
    assert added != first


def test_seed_and_range_decide() -> None:
    request = TraceRequest(id="r", input_length=40)
    assert token_ids(request, PromptSpec(seed=1)) != token_ids(request, PromptSpec(seed=2))
    small = token_ids(request, PromptSpec(token_low=5, token_high=7))
    assert set(small) == {5, 6}


def test_ids_are_uniform() -> None:
    from scipy import stats

    found = np.array(made_up_ids("x", 40_000, PromptSpec(token_low=100, token_high=140)))
    assert stats.chisquare(np.bincount(found - 100, minlength=40)).pvalue > 0.001


def test_the_stream_is_philox_keyed_by_sha256() -> None:
    """The definition in the docstring, written out on plain integers: ids of any other make would break old pairs."""
    key = int.from_bytes(hashlib.sha256(b"kvload/7/block/3").digest()[:16], "little")
    raw = [int(value) for value in np.random.Generator(np.random.Philox(key=key)).bit_generator.random_raw(16)]
    assert blocks([3], 16) == [1000 + (((value >> 32) * 29_000) >> 32) for value in raw]
    assert blocks([3], 4) == [29128, 29604, 7307, 24701]


def test_the_same_in_another_process_with_another_hash_seed() -> None:
    code = (
        "from kvload.workloads.schedule.prompts import PromptSpec, token_ids;"
        "from kvload.workloads.traces.trace import TraceRequest;"
        "print(token_ids(TraceRequest(id='r', input_length=9), PromptSpec(seed=7)))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "12345"}
    ).stdout
    assert out.strip() == str(token_ids(TraceRequest(id="r", input_length=9), SPEC))


@pytest.mark.parametrize("size", [64, 1157, 32_000, 128_256, 151_936])
def test_a_vocabularys_ends_are_left_out(size: int) -> None:
    spec = PromptSpec.for_vocabulary(size)
    assert size // 10 <= spec.token_low < spec.token_high <= size - size // 10


def test_given_ids_are_kept_and_bad_ranges_refused() -> None:
    assert token_ids(TraceRequest(id="r", prompt_token_ids=[3, 1]), SPEC) == [3, 1]
    with pytest.raises(ValueError, match="no length"):
        token_ids(TraceRequest(id="r"), SPEC)
    with pytest.raises(UsageError):
        PromptSpec(token_low=5, token_high=5)
