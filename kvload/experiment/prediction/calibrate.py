"""A designed load on a running server, from which its step times can be fitted: about a minute.

Three closed loops: requests alone, a few at once, and many at once, with short and long prompts. Alone they show a
step, a prompt and what first tokens take beside both; together they show what a sequence and what its context adds, and
prompts that are read while others decode. The runs are ordinary run folders.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kvload.address import Address
from kvload.errors import UsageError
from kvload.experiment.options import ReplayOptions, RunOptions
from kvload.experiment.prediction.fitting import method_of
from kvload.experiment.replay import Listener, replay_once
from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.workloads.run.plan import Sending
from kvload.workloads.schedule.options import ScheduleOptions

SECONDS = 60.0
"""What the three loops may take together, about."""

SHORT, LONG = 64, 2048
"""Prompt tokens, where the server's limits allow them."""

FIRST_ANSWER, LEAST_ANSWER, MOST_ANSWER = 24, 12, 96
"""Tokens of the answers of lone requests, and of the others as time allows."""

MOST_AT_ONCE = 32
ROUNDS = 4
"""Requests of a loop for each place in it."""


@dataclass(frozen=True)
class Target:
    """A server that runs.

    Attributes:
        server: a launched one's name; the only one where this and ``address`` are None.
        address: any OpenAI-compatible server instead.
        model: the name to ask for; its first where None.
        max_model_len, pool_tokens, method: as the server says where None.
    """

    server: str | None = None
    address: Address | None = None
    model: str | None = None
    max_model_len: int | None = None
    pool_tokens: int | None = None
    method: str | None = None


def run_calibration(
    target: Target, out: Path, *, seconds: float = SECONDS, seed: int = 0, say: Callable[[str], None] = print
) -> list[Path]:
    """Put the designed load on a server.

    Args:
        out: folder for the traces and the run folders ``alone``, ``few`` and ``many``.
        seconds: about how long it may take, without starting to send and reading answers to their ends.
        seed: decides lengths and prompts.
        say: told what happens.

    Returns:
        the run folders.

    Raises:
        UsageError: an answer failed.
        ServerError: the server does not answer.
    """
    rng = np.random.default_rng(seed)
    alone = _loop(target, out / "alone", [(SHORT, FIRST_ANSWER), (4 * SHORT, FIRST_ANSWER)] * 4, 1, say)
    manifest = alone.manifest()
    method_of(manifest, alone.path, target.method)
    step_s, first_s = _pace(alone)
    longest = min(LONG, (target.max_model_len or manifest.server.max_model_len or 4 * LONG) // 2)
    pool = target.pool_tokens or manifest.server.pool_tokens
    many = MOST_AT_ONCE if pool is None else max(3, min(MOST_AT_ONCE, pool // (longest // 2 + MOST_ANSWER)))
    # Half of the time is for reading prompts, one after the other; on a slow server they are shorter.
    prompt_token_s = first_s / (2.5 * SHORT)
    readable = seconds / 2 / (prompt_token_s * ROUNDS * 1.3 * many)
    longest = int(max(4 * SHORT, min(longest, 2.5 * readable, longest if pool is None else pool // 4)))
    prompts = np.unique(np.geomspace(SHORT, longest, 4).astype(int))
    runs = [alone.path]
    for name, at_once in (("few", max(2, round(many**0.5))), ("many", many)):
        # A step of many takes longer than one alone, but less than all of them.
        answer = int(np.clip(seconds / 4 / ROUNDS / (step_s * max(1.0, at_once / 4)), LEAST_ANSWER, MOST_ANSWER))
        lengths = rng.permuted(np.resize(prompts, ROUNDS * at_once))
        answers = rng.integers(answer // 2, answer + answer // 2 + 1, len(lengths))
        requests = [(int(length), int(tokens)) for length, tokens in zip(lengths, answers, strict=True)]
        runs.append(_loop(target, out / name, requests, at_once, say).path)
    return runs


def _loop(
    target: Target, folder: Path, requests: Sequence[tuple[int, int]], at_once: int, say: Callable[[str], None]
) -> RunDir:
    """Requests of prompt and answer lengths in a closed loop."""
    say(f"{len(requests)} requests, {at_once} at a time")
    folder.parent.mkdir(parents=True, exist_ok=True)
    trace = folder.with_suffix(".jsonl")
    rows = [
        {"id": str(place), "arrival": 0.0, "input_length": prompt, "output_length": answer}
        for place, (prompt, answer) in enumerate(requests)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    options = ReplayOptions(
        trace=trace,
        run=RunOptions(
            schedule=ScheduleOptions(mode="forced"),
            sending=Sending(concurrency=at_once, warmups=min(2, at_once)),
            max_model_len=target.max_model_len,
            calibrate=False,
            label="calibration",
        ),
        server=target.server,
        address=target.address,
        model=target.model,
        out=folder,
    )
    run = replay_once(options, Listener())
    _answered(run.manifest(), len(requests), folder)
    return run


def _answered(manifest: RunManifest, count: int, folder: Path) -> None:
    if manifest.ended != "completed" or manifest.sent != count:
        raise UsageError(
            f"the calibration did not come to its end: {manifest.ended}", where=str(folder), hint="kvload report FOLDER"
        )


def _pace(run: RunDir) -> tuple[float, float]:
    """Seconds of a token and of a first token of lone requests."""
    from kvload.analysis.records.table import load

    table = load(run)
    ok = table.ok & (table.output_tokens > 1)
    if not ok.any():
        raise UsageError("the server streamed no answers", where=str(run.path), hint="kvload report FOLDER")
    step_s = np.median((table.t_last_s - table.t_first_s)[ok] / (table.output_tokens[ok] - 1))
    return max(1e-4, float(step_s)), max(1e-4, float(np.median((table.t_first_s - table.t_send_s)[ok])))


def target_of(text: str, target: Target) -> Target:
    """A target from a launched server's name or an address.

    Raises:
        UsageError: it is an address that does not parse.
    """
    if "://" in text:
        return replace(target, address=Address.parse(text))
    return replace(target, server=text)
