"""The embedded server with its model replaced by waiting: every step takes a known time, the first of a shape longer.

Its scheduler, page account, API and step log are the real ones. Run as the engine itself is, with the same arguments;
the environment's ``WAITING`` holds other times as JSON: ``{"decode_s": 0.004}``.
"""

import json
import math
import os
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from kvload.servers.embedded.__main__ import main
from kvload.servers.embedded.cache.api import StepEntry
from kvload.servers.embedded.core.runner import Runner, StepResult
from kvload.servers.embedded.core.sampler import Sampled
from kvload.servers.embedded.core.scheduler import Chunk
from kvload.servers.embedded.core.sequence import Sequence as Request


@dataclass(frozen=True)
class Costs:
    """Seconds of a step, of prompts in it, of who decodes, of a token it reads, of a prompt token, and of compiling on
    average; the standard deviation of logarithms of all of it."""

    step_s: float = 8e-3
    prompt_step_s: float = 20e-3
    decode_s: float = 1e-4
    context_s: float = 1e-7
    prompt_token_s: float = 5e-5
    compiling_s: float = 0.25
    noise: float = 0.0


COSTS = Costs(**json.loads(os.environ.get("WAITING", "{}")))

_seen: set[tuple[float, float, bool]] = set()
_random = random.Random(1)


def seconds(chunks: Sequence[Chunk[Request]]) -> float:
    """How long a step takes."""
    decodes = [chunk for chunk in chunks if chunk.count == 1 and chunk.start > 0]
    prompts = [chunk for chunk in chunks if chunk.count > 1 or chunk.start == 0]
    tokens = sum(chunk.count for chunk in prompts)
    took_s = COSTS.step_s + COSTS.prompt_step_s * bool(prompts) + COSTS.prompt_token_s * tokens
    took_s += COSTS.decode_s * len(decodes) + COSTS.context_s * sum(chunk.start for chunk in decodes)
    shape = (_power(len(decodes)), _power(tokens), any(chunk.start > 0 for chunk in prompts))
    took_s *= math.exp(_random.gauss(0.0, COSTS.noise))
    if shape not in _seen:
        took_s += 2 * COSTS.compiling_s * _random.random()
    _seen.add(shape)
    return took_s


def _power(count: int) -> float:
    return math.ceil(math.log2(count)) if count else -1


def run(self: Runner, chunks: Sequence[Chunk[Request]]) -> list[StepResult]:
    """A step of a runner: the cache's plan is made and kept, nothing is computed."""
    until_s = time.monotonic() + seconds(chunks)
    plan = self.cache.plan(
        [StepEntry(chunk.sequence.cache, chunk.count, chunk.sequence.prefill_length) for chunk in chunks]
    )
    self.cache.commit(plan)
    time.sleep(max(0.0, until_s - time.monotonic()))
    return [StepResult(Sampled(5) if chunk.completes else None) for chunk in chunks]


if __name__ == "__main__":
    Runner.run = run  # type: ignore[method-assign]
    sys.exit(main())
