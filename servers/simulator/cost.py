"""What a step costs: a physical model, linear in what the GPU does, beside the host that launches it.

A step of a transformer reads its weights once (a constant), does work for every token it computes (decodes and prompt
tokens), and reads the keys and values of the contexts that its queries look at. Prompt tokens look at each other: their
work grows with the square of the chunk.

Engines replay recorded graphs for decoding alone, so that the host has nothing to do. The kernels of a step with
prompts are launched one by one, which takes ``launch`` seconds however few the prompt tokens are; what is behind the
later of both, GPU and launch, is ``prompt_steps``. A server that schedules ahead launches a step as soon as the output
of the step before the running one is handed out: while the running one computes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepWork:
    """What one step does.

    Attributes:
        steps: how many.
        prompt_steps: how many of them have prompt tokens in them.
        decodes: tokens generated.
        context: tokens whose keys and values the generated ones read, summed over them; where a method evicts, the
            kept ones.
        prompt_tokens: prompt tokens computed.
        prompt_work: for every prompt token the tokens it looks at, summed: ``count * (start + (count + 1) / 2)``.
    """

    steps: float = 1.0
    prompt_steps: float = 0.0
    decodes: float = 0.0
    context: float = 0.0
    prompt_tokens: float = 0.0
    prompt_work: float = 0.0


@dataclass(frozen=True)
class StepCost:
    """Seconds by feature; see :class:`StepWork`. All are 0 or more.

    Attributes:
        launch: what the host takes for a step with prompts.
    """

    steps: float
    prompt_steps: float = 0.0
    decodes: float = 0.0
    context: float = 0.0
    prompt_tokens: float = 0.0
    prompt_work: float = 0.0
    launch: float = 0.0

    @classmethod
    def of(cls, coefficients: Sequence[float]) -> "StepCost":
        """The costs as a step model has them."""
        return cls(*coefficients)

    def seconds(self, work: StepWork, launched_s: float = 0.0) -> float:
        """How long that takes.

        Args:
            launched_s: when the host has launched it, in seconds since the step before was over.
        """
        computing = (
            self.steps * work.steps
            + self.decodes * work.decodes
            + self.context * work.context
            + self.prompt_tokens * work.prompt_tokens
            + self.prompt_work * work.prompt_work
        )
        return max(computing, launched_s) + self.prompt_steps * work.prompt_steps


def prompt_work(start: int, count: int) -> float:
    """Tokens that the prompt tokens ``start .. start + count`` look at, summed."""
    return count * (start + (count + 1) / 2)


@dataclass(frozen=True, slots=True)
class Kept:
    """Tokens of a sequence that attention reads where a method evicts.

    Attributes:
        tokens: that stay after the prompt.
        evicts_while_decoding: whether generated tokens push others out.
    """

    tokens: int
    evicts_while_decoding: bool

    def __call__(self, length: int, prompt_tokens: int) -> int:
        """So many of a sequence of this length, its prompt's tokens among them."""
        if length <= self.tokens:
            return length
        if self.evicts_while_decoding:
            return self.tokens
        return self.tokens + length - max(prompt_tokens, self.tokens)

    def even_steps(self, length: int) -> int:
        """Steps over which a sequence of this length reads as many tokens more in each as in the one before."""
        return self.tokens - length + 1 if self.evicts_while_decoding and length < self.tokens else sys.maxsize
