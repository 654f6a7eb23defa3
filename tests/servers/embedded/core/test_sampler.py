"""Choosing tokens: against plain probabilities and definitions."""

import math
from typing import Any

import torch
from scipy.stats import chisquare

from kvload.servers.embedded.core.sampler import Sampler, describe
from kvload.servers.embedded.core.sequence import SamplingParams, Sequence

CPU = torch.device("cpu")


def sequence(generated: int = 0, **params: Any) -> Sequence:
    return Sequence(0, [0] * (1 + generated), 1, SamplingParams(**{"max_tokens": 9, **params}), lambda _: None, 0.0)


def draws(logits: torch.Tensor, count: int, **params: Any) -> list[int]:
    sampler = Sampler(frozenset(), seed=3, device=CPU)
    rows = [sequence(**params) for _ in range(count)]
    return [sampled.token for sampled in sampler.sample(logits.repeat(count, 1), rows)]


def test_greedy_takes_the_largest() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(frozenset(), seed=0, device=CPU)
    tokens = [sampled.token for sampled in sampler.sample(logits.clone(), [sequence() for _ in range(5)])]
    assert tokens == logits.argmax(1).tolist()


def test_random_choice_follows_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    found = draws(logits, 4000, temperature=0.7)
    expected = torch.softmax(logits[0].double() / 0.7, dim=0) * 4000
    assert chisquare([found.count(token) for token in range(4)], expected.numpy()).pvalue > 1e-3


def test_top_p_and_top_k_keep_the_likeliest() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert set(draws(logits, 500, temperature=1.0, top_p=0.6)) == {0, 1}
    assert set(draws(logits, 500, temperature=1.0, top_p=0.5)) == {0}
    assert set(draws(logits, 500, temperature=1.0, top_k=3)) == {0, 1, 2}


def test_a_seed_makes_a_request_independent_of_its_neighbours() -> None:
    generator = torch.Generator().manual_seed(1)
    steps = [torch.randn(1, 50, generator=generator) for _ in range(8)]

    def run(others: int) -> list[int]:
        sampler = Sampler(frozenset(), seed=others, device=CPU)
        own = sequence(temperature=1.0, seed=42)
        rows = [sequence(temperature=1.0) for _ in range(others)] + [own]
        return [sampler.sample(logits.repeat(len(rows), 1), rows)[-1].token for logits in steps]

    assert run(0) == run(3)
    assert len(set(run(0))) > 1


def test_min_tokens_bars_the_end_of_sequence_and_stop_tokens() -> None:
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    sampler = Sampler(frozenset({0}), seed=0, device=CPU)

    def token(generated: int, **params: Any) -> int:
        return sampler.sample(logits.clone(), [sequence(generated, **params)])[0].token

    assert token(1, min_tokens=2) == 1
    assert token(1, min_tokens=2, stop_token_ids=frozenset({1})) == 2
    assert token(2, min_tokens=2) == 0
    assert token(1, min_tokens=2, ignore_eos=True) == 0


def test_logits_that_are_not_finite_fail_their_row_only() -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = math.nan
    sampler = Sampler(frozenset(), seed=0, device=CPU)
    rows = [sequence(), sequence(), sequence(temperature=1.0)]
    assert [sampled.error is None for sampled in sampler.sample(logits, rows)] == [True, False, True]


def test_logprobs_are_of_the_unchanged_distribution() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    sampler = Sampler(frozenset({0}), seed=0, device=CPU)
    [sampled] = sampler.sample(logits.clone(), [sequence(min_tokens=1, logprobs=2)])
    expected = torch.log_softmax(logits[0].double(), dim=0)
    assert sampled.token == 2
    assert sampled.logprob is not None
    assert sampled.logprob.rank == 2
    assert math.isclose(sampled.logprob.logprob, expected[2].item(), rel_tol=1e-5)
    assert [token for token, _ in sampled.logprob.top] == [0, 2]


def test_describe_without_alternatives() -> None:
    [entry] = describe(torch.log(torch.tensor([[0.25, 0.75]])), [0], 0)
    assert entry.rank == 2
    assert entry.top == ()
