"""What a step costs: a physical model, linear in what the step does.

A step of a transformer reads its weights once (a constant; another where prompts are in it, since engines replay
recorded graphs for decoding alone), does work for every token it computes (decodes and prompt
tokens), and reads the keys and values of the contexts that its queries look at. Prompt tokens look at each other: their
work grows with the square of the chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StepWork:
    """What one step does, or several together: the model is linear, so that sums of steps cost sums of seconds.

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
        free_prompt_tokens: prompt tokens of a step that cost nothing beside ``prompt_steps``.
    """

    steps: float
    prompt_steps: float = 0.0
    decodes: float = 0.0
    context: float = 0.0
    prompt_tokens: float = 0.0
    prompt_work: float = 0.0
    free_prompt_tokens: int = 0

    @classmethod
    def of(cls, seconds: Sequence[float], free_prompt_tokens: int = 0) -> "StepCost":
        """The costs of features in their order in :class:`StepWork`."""
        steps, prompt_steps, decodes, context, prompt_tokens, prompt_work = seconds
        return cls(steps, prompt_steps, decodes, context, prompt_tokens, prompt_work, free_prompt_tokens)

    def seconds(self, work: StepWork) -> float:
        """How long that takes; prompts are those of one step."""
        return (
            self.steps * work.steps
            + self.prompt_steps * work.prompt_steps
            + self.decodes * work.decodes
            + self.context * work.context
            + self.prompt_tokens * max(0.0, work.prompt_tokens - self.free_prompt_tokens)
            + self.prompt_work * work.prompt_work
        )


def prompt_work(start: int, count: int) -> float:
    """Tokens that the prompt tokens ``start .. start + count`` look at, summed."""
    return count * (start + (count + 1) / 2)
