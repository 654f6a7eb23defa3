"""The next token of every sequence of a step, chosen from one tensor of logits."""

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from kvload.servers.embedded.core.sequence import Sequence, TokenLogprob


@dataclass(frozen=True)
class Sampled:
    """A row's token, or why there is none."""

    token: int
    logprob: TokenLogprob | None = None
    error: str | None = None


class Sampler:
    """Greedy and random choice, vectorised over a batch.

    Random choice takes the largest ``p / e`` with ``e`` exponentially distributed, which draws from ``p`` (the
    "exponential race") without a synchronising multinomial. A request with a seed has its own stream, so that its
    answer does not depend on its neighbours.

    Args:
        eos_ids: the model's end-of-sequence tokens.
        seed: of the stream shared by requests without one.
        device: of the logits.
    """

    def __init__(self, eos_ids: frozenset[int], *, seed: int, device: torch.device) -> None:
        self.eos_ids = eos_ids
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device

    def sample(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> list[Sampled]:
        """Choose one token per row.

        Args:
            logits: ``(rows, vocabulary)``, float32; changed in place.
            sequences: the rows' sequences.
        """
        rows = len(sequences)
        before = logits.log_softmax(-1) if any(s.params.logprobs is not None for s in sequences) else None
        for row, sequence in enumerate(sequences):
            if sequence.generated < sequence.params.min_tokens:
                barred = sequence.params.stop_token_ids
                if not sequence.params.ignore_eos:
                    barred |= self.eos_ids
                if barred:
                    logits[row, sorted(barred)] = -math.inf
        tokens = greedy = _largest(logits)
        random = [row for row in range(rows) if sequences[row].params.temperature > 0.0]
        if random:
            index = torch.tensor(random, device=self._device)
            tokens = tokens.index_copy(0, index, self._draw(logits[index], [sequences[row] for row in random]))
        best = logits.gather(1, greedy.unsqueeze(1)).squeeze(1)
        packed = torch.stack((tokens.double(), best.double())).tolist()
        result = []
        for row, sequence in enumerate(sequences):
            if not math.isfinite(packed[1][row]):
                result.append(Sampled(0, error="the model gave logits that are not finite"))
                continue
            token = int(packed[0][row])
            entry = None
            if before is not None and sequence.params.logprobs is not None:
                entry = describe(before[row : row + 1], [token], sequence.params.logprobs)[0]
            result.append(Sampled(token, entry))
        return result

    def _draw(self, logits: torch.Tensor, sequences: Rows[Sequence]) -> torch.Tensor:
        params = [sequence.params for sequence in sequences]
        temperature = torch.tensor([p.temperature for p in params], device=self._device).unsqueeze(1)
        probabilities = torch.softmax(logits / temperature, dim=-1)
        if any(p.top_p < 1.0 or p.top_k > 0 for p in params):
            probabilities = _truncate(
                probabilities,
                torch.tensor([p.top_p for p in params], device=self._device).unsqueeze(1),
                torch.tensor([p.top_k or logits.shape[1] for p in params], device=self._device).unsqueeze(1),
            )
        noise = torch.empty_like(probabilities).exponential_(generator=self._generator)
        for row, sequence in enumerate(sequences):
            if sequence.params.seed is not None:
                if sequence.generator is None:
                    sequence.generator = torch.Generator(self._device).manual_seed(sequence.params.seed)
                noise[row].exponential_(generator=sequence.generator)
        return probabilities.div_(noise).argmax(dim=-1)


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """The column of each row's largest value, of a NaN if there is one."""
    if logits.device.type == "cpu":
        return torch.from_numpy(logits.numpy().argmax(axis=-1))  # ten times as fast as torch's
    return logits.argmax(dim=-1)


def _truncate(probabilities: torch.Tensor, top_p: torch.Tensor, top_k: torch.Tensor) -> torch.Tensor:
    """Set to zero what lies outside the ``top_k`` likeliest tokens or the smallest set of mass ``top_p``."""
    ordered, order = probabilities.sort(dim=-1, descending=True)
    mass_before = ordered.cumsum(-1) - ordered
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    ordered = ordered.masked_fill((mass_before >= top_p) | (rank >= top_k), 0.0)
    return torch.zeros_like(probabilities).scatter_(1, order, ordered)


def describe(logprobs: torch.Tensor, tokens: Rows[int], top: int) -> list[TokenLogprob]:
    """Log probability, rank and the ``top`` likeliest tokens of each row.

    Args:
        logprobs: ``(rows, vocabulary)``.
        tokens: the token of each row.
        top: alternatives to list.
    """
    chosen = torch.tensor(tokens, device=logprobs.device).unsqueeze(1)
    values = logprobs.gather(1, chosen)
    ranks = ((logprobs > values).sum(1) + 1).tolist()
    best = logprobs.topk(min(top, logprobs.shape[1]), dim=-1)
    return [
        TokenLogprob(token, value, rank, tuple(zip(indices, alternatives, strict=True)))
        for token, value, rank, indices, alternatives in zip(
            tokens, values[:, 0].tolist(), ranks, best.indices.tolist(), best.values.tolist(), strict=True
        )
    ]
