"""The checks of a launched server: the fixed text, its scores through a toy model's cache, and what is made of them."""

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.address import Address
from kvload.errors import ServerError
from kvload.servers.engines.base import Claim
from kvload.servers.engines.sglang.adapter import SglangAdapter
from kvload.servers.verification.baselines import Baseline
from kvload.servers.verification.likelihood import ANSWER_TOKENS, Scores, Target, answer_places, make_text, score
from kvload.servers.verification.verdict import combine, describe, judge_bytes, judge_pool, judge_scores, limit_by_size
from kvload.servers.verification.verify import stored_bytes_per_token


@pytest.fixture(scope="module")
def toy() -> ModuleType:
    spec = importlib.util.spec_from_file_location("toy_model_server", Path(__file__).with_name("toy_model_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def baseline_of(scores: Scores, pool_tokens: int | None = 10_000) -> Baseline:
    own = list(scores.own)
    return Baseline(
        pool_tokens=pool_tokens,
        scoring=scores.scoring,
        text_tokens=scores.text_tokens,
        own=own,
        again=own,
        other=list(scores.other),
    )


@pytest.fixture(scope="module", params=["forced", "prefix", "chunked"])
def measured(request: pytest.FixtureRequest, toy: ModuleType) -> dict[str, Scores]:
    """Scores of one kind through a sound, a rough and a corrupt cache."""
    found = {}
    for kind in ("sound", "rough", "corrupt"):
        with toy.serve(kind) as url:
            found[kind] = score(request.param, Target(Address.parse(url), "toy", toy.VOCABULARY, 1024, step_tokens=512))
    return found


def test_a_sound_cache_has_no_error_a_rough_one_a_small_a_corrupt_one_a_large(measured: dict[str, Scores]) -> None:
    baseline = baseline_of(measured["sound"])
    assert len(baseline.own) >= 70
    sound = judge_scores(measured["sound"], baseline, 0.35)
    rough = judge_scores(measured["rough"], baseline, 0.35)
    corrupt = judge_scores(measured["corrupt"], baseline, 0.35)
    assert sound.ok
    assert sound.figures["lost"] == 0
    assert rough.ok
    assert 0 < rough.figures["lost"] < 0.35
    assert not corrupt.ok
    assert corrupt.figures["lost"] > 0.8
    assert "the cache is corrupt" in corrupt.problems[0]


def test_forced_scores_are_the_models_own(toy: ModuleType) -> None:
    with toy.serve("sound") as url:
        scores = score("forced", Target(Address.parse(url), "toy", toy.VOCABULARY, 1024))
    text = make_text(20240607, 640, toy.VOCABULARY)
    places = answer_places(text)
    expected = [
        toy.logprobs(text[: place + step])[text[place + step]] for place in places for step in range(1, ANSWER_TOKENS)
    ]
    assert list(scores.own) == pytest.approx(expected)


def test_the_text_and_its_answers() -> None:
    text = make_text(1, 640, 4096)
    assert text == make_text(1, 640, 4096)
    assert text != make_text(2, 640, 4096)
    assert len(text) == 640
    assert min(text) >= 409
    assert max(text) < 3687
    places = answer_places(text)
    assert len(places) == 24
    for place in places:
        assert len(set(text[place : place + ANSWER_TOKENS])) == 1
        assert text[place - 1] != text[place]


@given(st.integers(2, 200_000), st.integers(200, 2000))
def test_texts_of_any_vocabulary(vocabulary: int, tokens: int) -> None:
    text = make_text(3, tokens, vocabulary)
    assert len(text) == tokens
    assert all(0 <= token < vocabulary for token in text)


def test_a_server_that_does_not_force_or_answers_no_numbers_is_told(toy: ModuleType) -> None:
    with toy.serve("sound", forces=False) as url, pytest.raises(ServerError, match="does not force tokens"):
        score("forced", Target(Address.parse(url), "toy", toy.VOCABULARY, 1024))
    with toy.serve("broken") as url, pytest.raises(ServerError, match="no numbers"):
        score("chunked", Target(Address.parse(url), "toy", toy.VOCABULARY, 1024, step_tokens=512))
    with pytest.raises(ServerError, match="too short"):
        score("forced", Target(Address.parse("http://127.0.0.1:9"), "toy", 1000, 100))
    with pytest.raises(ServerError, match="beyond a step"):
        score("chunked", Target(Address.parse("http://127.0.0.1:9"), "toy", 1000, 2048, step_tokens=2048))


def test_failing_at_the_check_is_failing_the_check() -> None:
    baseline = baseline_of(Scores("forced", 640, (-1.0, -2.0), (-3.0, -1.0)))
    verdict = judge_scores(ServerError("/v1/completions answered 500"), baseline, 0.35)
    assert not verdict.ok
    assert verdict.figures["failure"] == "/v1/completions answered 500"


def test_scores_that_do_not_depend_on_the_context_say_nothing() -> None:
    baseline = baseline_of(Scores("forced", 640, (-8.0, -8.0), (-8.0001, -8.0)))
    verdict = judge_scores(Scores("forced", 640, (-9.0, -9.0), (-9.0, -9.0)), baseline, 0.35)
    assert verdict.ok
    assert not verdict.figures["checked"]
    assert "lost" not in verdict.figures


@given(
    st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0), st.floats(-20, 0)), min_size=2, max_size=50),
    st.floats(0.1, 2.0),
)
def test_the_lost_share_is_the_quotient_of_two_norms(rows: list[tuple[float, float, float]], limit: float) -> None:
    base, other, method = zip(*rows, strict=True)
    effect = math.dist(other, base)
    verdict = judge_scores(Scores("forced", 640, method, other), baseline_of(Scores("forced", 640, base, other)), limit)
    if verdict.figures["checked"]:
        share = math.dist(method, base) / effect
        assert verdict.figures["lost"] == pytest.approx(share, abs=1e-4)
        assert verdict.ok == (share <= limit)
    else:
        assert effect / math.sqrt(len(rows)) < 1e-3


CLAIM = Claim(bytes_per_token=136, baseline_bytes_per_token=512)


@pytest.mark.parametrize(
    ("tokens", "claim", "compresses", "problem"),
    [
        (37_647, CLAIM, True, None),
        (20_000, CLAIM, True, "2.000 times the baseline's tokens; the method's bytes claim 3.765"),
        (10_000, Claim(512, 512), True, "leaves all layers"),
        (10_000, Claim(512, 512), False, None),
        (20_000, None, True, None),
        (10_050, None, True, "nothing is compressed"),
        (None, CLAIM, True, None),
    ],
)
def test_pool_sizes(tokens: int | None, claim: Claim | None, compresses: bool, problem: str | None) -> None:
    verdict = judge_pool(tokens, 10_000, claim, compresses, None)
    assert verdict.ok == (problem is None)
    if problem:
        assert problem in verdict.problems[0]
    assert verdict.figures["checked"] == (tokens is not None)


def test_a_pool_set_by_a_flag_shows_nothing_and_says_so() -> None:
    pool = judge_pool(10_000, 10_000, CLAIM, True, "--num-gpu-blocks-override")
    assert pool.ok
    both = combine(pool, judge_scores(ServerError("gone"), baseline_of(Scores("forced", 1, (0.0,), (1.0,))), 0.5))
    assert not both.ok
    assert both.figures["problems"] == ["the server failed at the check: gone"]
    assert "--num-gpu-blocks-override" in describe(
        {**both.figures, "soundness": {"checked": True, "lost": 0.1, "limit": 1}}
    )


def test_bytes_that_sglang_states_are_held_against_the_claim(tmp_path: Path) -> None:
    def stored(text: str) -> float | None:
        (tmp_path / "log").write_text(text)
        return stored_bytes_per_token(SglangAdapter.pool_memory, tmp_path / "log")

    line = "[2026-01-01] KV Cache is allocated. dtype: torch.{}, #tokens: 65536, K size: {} GB, V size: {} GB\n"
    plain = stored("starting\n" + line.format("bfloat16", "4.00", "4.00"))
    packed = stored(line.format("float8_e4m3fn", "2.00", "2.00"))
    assert plain is not None
    assert packed is not None
    assert plain == 32 * 8 * 128 * 2 * 2
    assert packed == plain / 2
    assert stored("KV Cache is allocated. dtype: x, #tokens: 0, K size: 0.00 GB, V size: 0.00 GB") is None
    claim = Claim(plain / 2, plain)
    sound = judge_bytes(packed, claim, 65536)
    assert sound.ok
    assert sound.figures["ratio"] == 2
    assert not judge_bytes(plain, claim, 65536).ok


def test_the_less_room_an_unknown_setting_makes_the_less_it_may_err() -> None:
    limits = [limit_by_size(ratio) for ratio in (1.1, 2.0, 3.6, 5.0)]
    assert limits == sorted(set(limits))
    assert limit_by_size(None) == 0.5
