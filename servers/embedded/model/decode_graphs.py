"""Decoding steps as captured CUDA graphs: one launch replays a forward pass, without the host's work for each layer.

A graph reads ids, positions and the cache's arithmetic from memory that stays in place, and is captured once for each
number of rows that steps are rounded up to. Steps with a part of a prompt, or with more sequences, run as they are.
"""

import logging
from typing import Any

import torch

from kvload.servers.embedded.cache.paged import PagedCache
from kvload.servers.embedded.model.attention import StepContext
from kvload.servers.embedded.model.model import Model, run_module

logger = logging.getLogger(__name__)

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Numbers of rows that graphs are captured for."""


class DecodeGraphs:
    """The captured steps of a model over a cache whose kernels are capturable.

    Args:
        model: whose forward pass is captured; run module by module, since only its kernels are kept.
        cache: where keys and values are.
        sizes: numbers of rows, rising.
    """

    def __init__(self, model: Model, cache: PagedCache[Any, Any, Any, Any], sizes: tuple[int, ...] = SIZES) -> None:
        self.model, self.cache, self.sizes = model, cache, sizes
        device = model.geometry.device
        self._ids, self._positions, self._keep = (
            torch.zeros(sizes[-1], dtype=torch.long, device=device),
            torch.zeros(sizes[-1], dtype=torch.long, device=device),
            torch.arange(sizes[-1], device=device),
        )
        self._captured: dict[int, tuple[int, Any, torch.Tensor]] = {}
        self._pool: Any = None
        self.problem: str | None = None

    @torch.inference_mode()
    def run(self, ids: torch.Tensor, positions: torch.Tensor, plan: Any) -> torch.Tensor | None:
        """A step's logits ``(rows, vocab_size)``, valid until the next step; None where it must run as it is.

        Args:
            ids, positions: ``(rows,)`` of the step's tokens.
            plan: as the cache made it.
        """
        count = len(ids)
        if self.problem or plan.prefills or len(plan.decodes) != 1 or count > self.sizes[-1]:
            return None
        rows = next(size for size in self.sizes if size >= count)
        self._ids[:count], self._positions[:count] = ids, positions
        self._ids[count:rows], self._positions[count:rows] = 0, 0
        step, generation = self.cache.kernels.settle(plan, rows)
        found = self._captured.get(rows)
        if found is None or found[0] != generation:
            try:
                found = self._captured[rows] = (generation, *self._capture(step, rows))
            except RuntimeError as error:
                self.problem = str(error).splitlines()[0]
                logger.warning("decoding steps are not captured in graphs: %s", self.problem)
                self.cache.kernels.begin(plan)
                return None
        _, graph, logits = found
        graph.replay()
        return logits[:count]

    def _forward(self, step: Any, rows: int) -> torch.Tensor:
        self.cache.kernels.begin(step)
        context = StepContext(self.cache, step, self.model.extras)
        return run_module(self.model.module, self._ids[:rows], self._positions[:rows], self._keep[:rows], context)

    def _capture(self, step: Any, rows: int) -> tuple[Any, torch.Tensor]:
        """Record a step; it is run once before, so that its kernels are compiled and its memory is found."""
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._forward(step, rows)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            logits = self._forward(step, rows)
        self._pool = graph.pool()
        return graph, logits


def graphs_for(model: Model, cache: Any, most_rows: int) -> DecodeGraphs | None:
    """Graphs for steps of up to ``most_rows`` sequences; None where they cannot be captured."""
    if model.geometry.device.type != "cuda" or not cache.kernels.capturable:
        return None
    enough = next((index for index, size in enumerate(SIZES) if size >= most_rows), len(SIZES) - 1)
    return DecodeGraphs(model, cache, SIZES[: enough + 1])
