"""The arithmetic of one step, row by row: what is read, which queries judge, what is compacted. Plain numpy, no device.

A *slot* of a request is a place for one token: token ``i`` is written to slot ``i``. Compaction puts survivors into
other slots, so that afterwards slots below the number of computed tokens hold tokens in no particular order.
"""

from dataclasses import dataclass

import numpy as np

from kvload.servers.plugins.vllm.eviction.policy import Counts, Policy

NO_PROMPT = 1 << 30
"""Prompt length of a row that is no request: nothing is evicted before its end."""


@dataclass(frozen=True)
class StepRows:
    """The rows of a batch. Every attribute but the policy is an array with an entry a row.

    Attributes:
        before: tokens computed before the step.
        after: tokens computed after it.
        prompt: tokens of the prompt.
        first_before: leading blocks gone before the step: what attention does not read.
        first_after: leading blocks gone after it.
    """

    policy: Policy
    before: Counts
    after: Counts
    prompt: Counts
    first_before: Counts
    first_after: Counts

    @property
    def held(self) -> Counts:
        """Slots that attention reads, from the first kept block to the newest token."""
        return self.after - self.first_before * self.policy.block

    @property
    def judge_from(self) -> Counts:
        """Position of the first query of the step that gives scores."""
        judges = self.policy.judges
        return self.before if judges is None else np.maximum(self.before, self.prompt - judges)

    @property
    def judge_to(self) -> Counts:
        """Position behind the last such query; not above ``judge_from`` where there is none."""
        return self.after if self.policy.judges is None else np.minimum(self.after, self.prompt)

    @property
    def scored_before(self) -> Counts:
        """Slots below this have scores from earlier steps of the request; others begin with this step's."""
        judges = self.policy.judges
        return self.before if judges is None else np.where(self.before > self.prompt - judges, self.before, 0)

    @property
    def judging(self) -> bool:
        """Whether any row has a query that gives scores."""
        return self.policy.scores and bool((self.judge_to > self.judge_from).any())

    @property
    def compacting(self) -> bool:
        """Whether tokens move in any row: blocks go, and they are chosen by score."""
        return self.policy.scores and bool((self.first_after > self.first_before).any())

    @property
    def compact_to(self) -> Counts:
        """Slot behind the last one that takes part in compaction."""
        return self.after if self.policy.judges is None else np.minimum(self.after, self.prompt)


def plan(policy: Policy, after: Counts, new: Counts, prompt: Counts) -> StepRows:
    """The rows of a step.

    Args:
        after: tokens of each row, the step's own included.
        new: the step's own.
        prompt: prompt lengths; may be shorter than the others, whose rows are then no requests (padding of a graph).
    """
    prompts = np.full(len(after), NO_PROMPT, dtype=np.int64)
    prompts[: len(prompt)] = prompt[: len(after)]
    before = after - new
    return StepRows(
        policy, before, after, prompts, policy.first_kept(before, prompts), policy.first_kept(after, prompts)
    )
