"""One optimizer step, replayed as a CUDA graph on a GPU, because launches would rule with a network this small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kvload.servers.probe.training.muon import Muon
from kvload.servers.probe.training.network import ProbeNetwork


@dataclass(frozen=True, slots=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    tokens: Tensor
    weights: Tensor
    loss: Tensor


class TrainingStep:
    """Forward, backward and update of a network; one captured graph for each shape of batch.

    ``matrix_rate`` and ``vector_rate`` are the peak learning rates of Muon (the layers' matrices) and AdamW (embedding
    and norms).
    """

    def __init__(
        self,
        network: ProbeNetwork,
        matrix_rate: float,
        vector_rate: float,
        device: torch.device,
        compiled: bool,
        graphs: bool,
    ) -> None:
        self._network = network
        self._device = device
        self._peaks = (matrix_rate, vector_rate)
        self._rates = [torch.zeros((), device=device) for _ in self._peaks]
        on_gpu = device.type == "cuda"
        vectors = [network.embedding, network.attention_gain, network.mlp_gain, network.final_gain]
        self._optimizers: Sequence[torch.optim.Optimizer] = (
            Muon(network.matrices(), self._rates[0], weight_decay=0.02, compiled=compiled),
            torch.optim.AdamW(
                vectors, self._rates[1], betas=(0.9, 0.98), weight_decay=0.0, fused=on_gpu, capturable=on_gpu
            ),
        )
        self._tables: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._pool = torch.cuda.graph_pool_handle() if on_gpu and graphs else None

    def prepare(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Make all that batches of these shapes (rows, length) need: position tables and, on a GPU, graphs.

        Leaves the weights as they were and the learning rates at zero.
        """
        for rate in self._rates:
            rate.zero_()
        for rows, length in shapes:
            self._tables[rows, length] = self._network.tables(rows, length, self._device)
            if self._pool is not None:
                self._captured[rows, length] = self._capture(rows, length)
        self.reset()

    def reset(self) -> None:
        """Forget momentum and step counts."""
        for optimizer in self._optimizers:
            for state in optimizer.state.values():
                for value in state.values():
                    value.zero_()

    def set_rate(self, factor: float) -> None:
        """Set the learning rates to this share of their peaks."""
        for rate, peak in zip(self._rates, self._peaks, strict=True):
            rate.fill_(factor * peak)

    def __call__(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """Train on one batch, tokens and weights (rows, length); returns the loss before the update."""
        rows, length = tokens.shape
        captured = self._captured.get((rows, length))
        if captured is None:
            return self._run(tokens.to(self._device), weights.to(self._device))
        captured.tokens.copy_(tokens, non_blocking=True)
        captured.weights.copy_(weights, non_blocking=True)
        captured.graph.replay()
        return captured.loss.clone()

    def _run(self, tokens: Tensor, weights: Tensor) -> Tensor:
        rows, length = tokens.shape
        loss = self._network.loss(tokens.long(), weights.float(), self._tables[rows, length])
        loss.backward()  # type: ignore[no-untyped-call]
        for optimizer in self._optimizers:
            optimizer.step()
        self._network.zero_grad(set_to_none=True)
        return loss.detach()

    def _capture(self, rows: int, length: int) -> _Captured:
        tokens = torch.randint(300, 1000, (rows, length), device=self._device, dtype=torch.int16)
        weights = torch.ones(rows, length, device=self._device, dtype=torch.uint8)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._run(tokens, weights)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss = self._run(tokens, weights)
        return _Captured(graph, tokens, weights, loss)
