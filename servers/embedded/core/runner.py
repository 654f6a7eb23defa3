"""One step: pack the chunks, run the model, sample."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch

from kvload.servers.embedded.cache.api import KVCache, StepEntry
from kvload.servers.embedded.core.sampler import Sampled, Sampler, describe
from kvload.servers.embedded.core.scheduler import Chunk
from kvload.servers.embedded.core.sequence import Sequence, TokenLogprob
from kvload.servers.embedded.model.decode_graphs import DecodeGraphs
from kvload.servers.embedded.model.model import Model

LOGPROB_ROWS = 64
"""Rows of log probabilities worked on at once, since each is a whole vocabulary wide."""


@dataclass(frozen=True)
class StepResult:
    """What one chunk brought: a token if it reached the last known one, prompt log probabilities if asked for."""

    sampled: Sampled | None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


class Runner:
    """Runs steps of a model over a cache.

    Args:
        model, cache: what is run over what.
        sampler: chooses tokens.
        graphs: the captured steps; None where steps are not captured.
    """

    def __init__(self, model: Model, cache: KVCache, sampler: Sampler, graphs: DecodeGraphs | None = None) -> None:
        self.model = model
        self.cache = cache
        self.sampler = sampler
        self.graphs = graphs
        self._device = model.geometry.device

    @torch.inference_mode()
    def run(self, chunks: Rows[Chunk[Sequence]]) -> list[StepResult]:
        """Compute a step's chunks; pages must be reserved.

        Returns:
            one result per chunk, in order.
        """
        ids: list[int] = []
        positions: list[int] = []
        entries: list[StepEntry] = []
        keep: list[int] = []
        spans: list[tuple[int, int]] = []
        for chunk in chunks:
            sequence, start, count = chunk.sequence, chunk.start, chunk.count
            end = start + count
            begin = len(ids)
            ids += sequence.tokens[start:end]
            positions += range(start, end)
            entries.append(StepEntry(sequence.cache, count, sequence.prefill_length))
            row = len(keep)
            if wants_prompt_logprobs(chunk):
                keep += range(begin, begin + count)
            elif chunk.completes:
                keep.append(begin + count - 1)
            spans.append((row, len(keep)))
        packed = torch.tensor((ids, positions), device=self._device)
        plan = self.cache.plan(entries)
        # Every row of a step that can be captured is a whole one, whose logits are wanted.
        logits = self.graphs.run(packed[0], packed[1], plan) if self.graphs and len(keep) == len(ids) else None
        if logits is None:
            rows = torch.tensor(keep, dtype=torch.long, device=self._device)
            logits = self.model.forward(packed[0], packed[1], rows, self.cache, plan)
        self.cache.commit(plan)
        return self._results(chunks, spans, logits)

    def _results(
        self, chunks: Rows[Chunk[Sequence]], spans: Rows[tuple[int, int]], logits: torch.Tensor
    ) -> list[StepResult]:
        prompts = [
            self._prompt_logprobs(chunk, logits[first:last]) if wants_prompt_logprobs(chunk) else ()
            for chunk, (first, last) in zip(chunks, spans, strict=True)
        ]
        sampling = [i for i, chunk in enumerate(chunks) if chunk.completes and chunk.sequence.params.max_tokens > 0]
        rows = [spans[i][1] - 1 for i in sampling]
        if rows != list(range(logits.shape[0])):
            logits = logits[torch.tensor(rows, dtype=torch.long, device=self._device)]
        sampled = self.sampler.sample(logits, [chunks[i].sequence for i in sampling]) if sampling else []
        tokens = dict(zip(sampling, sampled, strict=True))
        return [StepResult(tokens.get(i), prompts[i]) for i in range(len(chunks))]

    def _prompt_logprobs(self, chunk: Chunk[Sequence], logits: torch.Tensor) -> tuple[TokenLogprob, ...]:
        """Log probabilities of the tokens that follow the chunk's, as far as they belong to the prompt."""
        sequence = chunk.sequence
        targets = sequence.tokens[chunk.start + 1 : min(chunk.start + chunk.count + 1, sequence.prompt_length)]
        found: list[TokenLogprob] = []
        for first in range(0, len(targets), LOGPROB_ROWS):
            part = targets[first : first + LOGPROB_ROWS]
            logprobs = logits[first : first + len(part)].log_softmax(-1)
            found += describe(logprobs, part, sequence.params.prompt_logprobs or 0)
        return tuple(found)


def wants_prompt_logprobs(chunk: Chunk[Sequence]) -> bool:
    """Whether a chunk has to say how likely its prompt tokens are (one recomputed for its answer need not again)."""
    return chunk.sequence.params.prompt_logprobs is not None and chunk.sequence.generated == 0
