"""Where a simulation leaves what its model was fitted from."""

from kvload.servers.simulator.cluster import Served
from kvload.step_model import StepModel

LEAST_SHARE = 0.005
"""Share of steps outside what was measured that is worth a word."""

OF_ALL, OF_PROMPTS = ("decodes", "context"), ("prompt_tokens", "prompt_work")
"""Features of a step that are looked at: of all steps, and of those with prompts."""

NEARLY = 1.001
"""What leaves by less than this is inside."""


def outside(served: Served, model: StepModel) -> dict[str, float]:
    """Features of a step that leave what was measured, with the share of steps (of those with prompts) that do.

    Features that hardly ever do are left out.
    """
    beyond: dict[str, float] = dict.fromkeys((*OF_ALL, *OF_PROMPTS), 0.0)
    most = {name: NEARLY * model.hull[name][1] if name in model.hull else float("inf") for name in beyond}
    steps = with_prompts = 0
    for replica in served.replicas:
        for stretch in replica.log:
            steps += stretch.steps
            beyond["decodes"] += stretch.steps * (stretch.decodes > most["decodes"])
            # Every step reads a token more of each sequence, but for what is evicted.
            grown = stretch.decodes * (stretch.steps - 1) if model.kept_tokens is None else 0
            if stretch.context > most["context"]:
                beyond["context"] += stretch.steps
            elif stretch.context + grown > most["context"]:
                beyond["context"] += stretch.steps - 1 - (most["context"] - stretch.context) // stretch.decodes
            if stretch.prompt_tokens:
                with_prompts += 1
                beyond["prompt_tokens"] += stretch.prompt_tokens > most["prompt_tokens"]
                beyond["prompt_work"] += stretch.prompt_work > most["prompt_work"]
    of = dict.fromkeys(OF_ALL, steps) | dict.fromkeys(OF_PROMPTS, with_prompts)
    return {name: count / of[name] for name, count in beyond.items() if of[name] and count / of[name] >= LEAST_SHARE}
