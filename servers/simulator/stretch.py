"""Steps that are taken together: when each of them ends, and how many of them begin before a moment."""

import math
import sys
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stretch:
    """Decoding steps of one server that were taken together, or one step.

    Attributes:
        start_s: when the first began.
        steps: how many.
        first_step_s: how long the first took.
        growth_s: how much longer each took than the one before.
        handed_s: when the tokens of the last were handed out, where that was later than its end.
        decodes, context: requests that generated a token in the first, and the tokens they read.
        prompt_tokens, prompt_work: prompt tokens computed, and the tokens that they looked at.
    """

    start_s: float
    steps: int
    first_step_s: float
    growth_s: float
    decodes: int = 0
    context: int = 0
    handed_s: float = 0.0
    prompt_tokens: int = 0
    prompt_work: float = 0.0

    def token_s(self, step: int) -> float:
        """When the tokens of a step, from 1, were handed out."""
        return max(self.end_s(step), self.handed_s) if step == self.steps else self.end_s(step)

    def end_s(self, steps: int) -> float:
        """When the first ``steps`` of them were over."""
        return self.start_s + steps * self.first_step_s + self.growth_s * steps * (steps - 1) / 2


def steps_to_pass(time_s: float, first_s: float, growth_s: float) -> int:
    """The fewest steps that together last ``time_s`` or longer, each ``growth_s`` longer than the one before.

    Steps that take no time, as a model fitted from too little may have them, never do: their number has no end.
    """
    if time_s <= first_s:
        return 1
    if first_s == growth_s == 0:
        return sys.maxsize
    half = growth_s / 2
    linear = first_s - half
    # The root of half n^2 + linear n = time_s, in the form that loses no digits where the growth is small.
    root = 2 * time_s / (linear + math.sqrt(linear * linear + 4 * half * time_s))
    return max(1, math.ceil(root * (1 - 1e-12)))
