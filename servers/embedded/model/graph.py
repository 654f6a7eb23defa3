"""The model's forward pass recorded once, and run without the Python of its modules.

A step of a small model spends most of its time in Python between operations. The recording holds the same operations in
the same order, with attention as one operation of ours, so that its results are equal bit for bit; that is checked
before it is used, and a model whose recording would depend on the recorded input is run as it is.
"""

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch

from kvload.servers.embedded.model.attention import StepContext

_EXAMPLE_TOKENS = 5
_CHECKED_TOKENS = (1, 3, 8)

_OPERATIONS = torch.library.Library("kvload", "DEF")  # type: ignore[no-untyped-call]
_OPERATIONS.define(  # type: ignore[no-untyped-call]
    "attend(Tensor query, Tensor key, Tensor value, int recording, int layer) -> Tensor"
)
_RECORDINGS: dict[int, "Recording"] = {}
_NUMBERS = itertools.count()
"""An operation of torch is global and takes only tensors and numbers, so that recordings have to be found by number."""


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, recording: int, layer: int) -> torch.Tensor:
    return _RECORDINGS[recording].attend(layer, query, key, value)


_OPERATIONS.impl("attend", _attend, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


class Recording:
    """A recorded forward pass.

    Args:
        module: the model, whose parameters the recording shares.
        forward: ``(ids, positions, keep, step)`` to logits, where ``step`` gets every layer's attention.
        vocab_size: token ids are below.
        device: where it runs.

    Raises:
        ValueError: the pass cannot be recorded, or a recording gives other results.
    """

    def __init__(self, module: torch.nn.Module, forward: "Forward", vocab_size: int, device: torch.device) -> None:
        self._step: StepContext | None = None
        self._fault: Exception | None = None
        self._number = next(_NUMBERS)
        _RECORDINGS[self._number] = self
        try:
            pass_through = _Pass(module, forward, _Caller(self._number))
            self._graph = self._record(pass_through, self._example(_EXAMPLE_TOKENS, vocab_size, device))
            for tokens in _CHECKED_TOKENS:
                example = self._example(tokens, vocab_size, device)
                with torch.inference_mode():
                    expected = pass_through(*example)
                if not torch.equal(self._run(example), expected):
                    raise ValueError("the recording gives other results")
        except Exception as error:
            self.close()
            raise ValueError(f"the model cannot be recorded: {error}") from error

    def close(self) -> None:
        """Forget the recording."""
        _RECORDINGS.pop(self._number, None)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor, step: StepContext
    ) -> torch.Tensor:
        """Run a step; what attention raises comes out as it was raised."""
        self._step = step
        try:
            return self._run((ids, positions, keep))
        except RuntimeError:
            if self._fault is not None:
                raise self._fault from None
            raise
        finally:
            self._step = self._fault = None

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """A layer's attention; while recording and checking, something cheap that depends on all three inputs."""
        if self._step is None:
            group = query.shape[1] // key.shape[1]
            return query + (0.5 * key + value).repeat_interleave(group, dim=1)
        try:
            step = self._step
            return step.cache.attend(layer, step.plan, query, key, value, step.extras[layer])
        except Exception as error:
            self._fault = error
            raise

    def _run(self, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        # Unoptimised: fused operations would round differently, and be compiled anew for every shape.
        with torch.jit.optimized_execution(False), torch.inference_mode():  # type: ignore[attr-defined]
            logits: torch.Tensor = self._graph(*inputs)
            return logits

    @staticmethod
    def _record(pass_through: torch.nn.Module, example: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> Any:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            # Says that a value became a constant, or decided a branch: the recording would hold for this input only.
            warnings.simplefilter("error", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            return torch.jit.trace(pass_through, example, check_trace=False)  # type: ignore[no-untyped-call]

    @staticmethod
    def _example(tokens: int, vocab_size: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(tokens)
        ids = torch.randint(vocab_size, (tokens,), generator=generator)
        positions = torch.randint(64, (tokens,), generator=generator)
        return ids.to(device), positions.to(device), torch.arange(0, tokens, 2, device=device)


class _Pass(torch.nn.Module):
    """The forward pass with nothing but tensors coming in; holds the model so that its parameters are not copied."""

    def __init__(self, module: torch.nn.Module, forward: "Forward", caller: "_Caller") -> None:
        super().__init__()
        self.module = module
        self._forward = forward
        self._caller = caller

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """One step's logits."""
        return self._forward(ids, positions, keep, self._caller)


Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Any], torch.Tensor]


class _Caller:
    """Stands in for a step while the pass is recorded: every layer's attention becomes one operation."""

    def __init__(self, number: int) -> None:
        self._number = number

    def attend(
        self, module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: dict[str, Any]
    ) -> torch.Tensor:
        output: torch.Tensor = torch.ops.kvload.attend(query, key, value, self._number, int(module.layer_idx))  # type: ignore[arg-type]
        return output
