"""The engine's thread: takes requests from a queue, runs steps, hands what they bring to the API's thread."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import replace
from typing import TYPE_CHECKING

from kvload.servers.embedded.core.detokenize import TextOutput
from kvload.servers.embedded.core.metrics import Metrics
from kvload.servers.embedded.core.runner import Runner, StepResult
from kvload.servers.embedded.core.scheduler import Chunk, Scheduler
from kvload.servers.embedded.core.sequence import Delta, FinishReason, SamplingParams, Sequence, Timings
from kvload.servers.embedded.core.steps import StepSink

if TYPE_CHECKING:
    from kvload.servers.embedded.core.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

Delivery = list[tuple[Callable[[Delta], None], Delta]]
"""What one step brought, in the order of its requests."""


class Engine:
    """Serves requests, one step after the other, until it is stopped.

    A fault in one request's handling fails that request; a fault of a whole step fails the requests of that step. In
    both cases their pages are freed and the engine goes on.

    Args:
        runner: computes steps.
        scheduler: chooses them.
        tokenizer: for the answers' text.
        metrics: counts.
        deliver: called from the engine's thread with each step's deltas; must hand them to the API's thread.
        steps: told of every step that was computed.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Sequence],
        tokenizer: "Tokenizer",
        metrics: Metrics,
        deliver: Callable[[Delivery], None],
        steps: StepSink | None = None,
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._deliver = deliver
        self._steps = steps
        self._eos_ids = runner.model.eos_ids
        self._inbox: queue.SimpleQueue[Sequence | tuple[str, Sequence] | None] = queue.SimpleQueue()
        self._numbers = 0
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the step that runs; requests in flight are left unanswered."""
        self._inbox.put(None)
        self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the thread serves."""
        return self._thread.is_alive()

    def submit(self, tokens: list[int], params: SamplingParams, on_delta: Callable[[Delta], None]) -> Sequence:
        """Queue a request whose size the cache can hold. Called on the API's thread only.

        Returns:
            a handle for :meth:`cancel`.
        """
        self._numbers += 1
        sequence = Sequence(self._numbers, list(tokens), len(tokens), params, on_delta, time.monotonic())
        self._inbox.put(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        """End a request whose client is gone: its pages are free before the next step. Harmless after its end."""
        self._inbox.put(("cancel", sequence))

    def _serve(self) -> None:
        while True:
            idle = not self._scheduler.running and not self._scheduler.waiting
            if not self._receive(idle):
                return
            out: Delivery = []
            try:
                self._step(out)
            except Exception as error:
                logger.exception("the engine's loop failed; all requests in it are given up")
                for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                    self._fail(sequence, _describe(error), out)
            if out:
                self._deliver(out)

    def _receive(self, idle: bool) -> bool:
        """Take in what the API sent, waiting for it if there is nothing to do; False to stop."""
        while idle or not self._inbox.empty():
            item = self._inbox.get()
            if item is None:
                return False
            if isinstance(item, tuple):
                self._cancel(item[1])
            else:
                self._scheduler.add(item)
            idle = False
        return True

    def _cancel(self, sequence: Sequence) -> None:
        if sequence.finished is None:
            self._end(sequence, FinishReason.ABORT, time.monotonic())

    def _step(self, out: Delivery) -> None:
        began_s, start = time.time(), time.monotonic()
        chunks = self._scheduler.schedule()
        if not chunks:
            stuck = self._scheduler.running or list(self._scheduler.waiting)[:1]
            for sequence in list(stuck):
                self._fail(sequence, "the KV cache cannot hold this request", out)
            return
        now = time.monotonic()
        for chunk in chunks:
            if chunk.sequence.scheduled_s is None:
                chunk.sequence.scheduled_s = now
        try:
            results = self._runner.run(chunks)
        except Exception as error:
            logger.exception("a step of %d requests failed", len(chunks))
            for chunk in chunks:
                self._fail(chunk.sequence, _describe(error), out)
            return
        if self._steps is not None:
            self._steps.add(chunks, began_s, time.monotonic() - start, len(self._scheduler.waiting))
        self._scheduler.advance(chunks)
        self._take_in(chunks, results, out)

    def _take_in(self, chunks: Rows[Chunk[Sequence]], results: Rows[StepResult], out: Delivery) -> None:
        now = time.monotonic()
        gaps: list[float] = []
        ttfts: list[float] = []
        prompt_tokens = generated = 0
        for chunk, result in zip(chunks, results, strict=True):
            sequence = chunk.sequence
            try:
                sequence.prompt_rows += result.prompt_logprobs
                if not chunk.completes:
                    continue
                first = sequence.first_token_s is None
                if first:
                    prompt_tokens += sequence.prompt_length
                delta = self._accept(sequence, result, now)
                if delta.tokens:
                    generated += 1
                    if first:
                        ttfts.append(now - sequence.arrival_s)
                    elif sequence.last_token_s is not None:
                        gaps.append(now - sequence.last_token_s)
                    sequence.last_token_s = now
                if delta.finish_reason is not None:
                    delta = replace(delta, timings=self._end(sequence, delta.finish_reason, now))
                out.append((sequence.on_delta, delta))
            except Exception as error:
                logger.exception("request %d failed", sequence.number)
                self._fail(sequence, _describe(error), out)
        self._metrics.step(
            prompt_tokens=prompt_tokens,
            generated=generated,
            gaps_s=gaps,
            ttfts_s=ttfts,
            preemptions=self._scheduler.preemptions,
        )

    def _accept(self, sequence: Sequence, result: StepResult, now_s: float) -> Delta:
        """Append a sampled token and see whether it ends the answer."""
        first = sequence.first_token_s is None
        prompt = (None, *sequence.prompt_rows) if first and sequence.params.prompt_logprobs is not None else None
        if result.sampled is None:
            return Delta(finish_reason=FinishReason.LENGTH, prompt_logprobs=prompt)
        if result.sampled.error is not None:
            raise RuntimeError(result.sampled.error)
        token, params = result.sampled.token, sequence.params
        if sequence.output is None:
            sequence.output = TextOutput(self._tokenizer, sequence.tokens, params.stop)
        if first:
            sequence.first_token_s = now_s
        sequence.tokens.append(token)
        generated = sequence.generated
        may_stop = generated >= params.min_tokens
        ends = may_stop and (token in params.stop_token_ids or (not params.ignore_eos and token in self._eos_ids))
        text, stopped = sequence.output.push(token, visible=not ends, stops_count=may_stop)
        reason = FinishReason.STOP if ends or stopped else None
        if reason is None and generated >= params.max_tokens:
            reason = FinishReason.LENGTH
        if reason is not None and not stopped:
            rest, stopped = sequence.output.flush()
            text += rest
            reason = FinishReason.STOP if stopped else reason
        entry = result.sampled.logprob
        return Delta((token,), text, reason, None if entry is None else (entry,), prompt)

    def _end(self, sequence: Sequence, reason: FinishReason, now_s: float) -> Timings:
        sequence.finished = reason
        self._scheduler.remove(sequence)
        timings = sequence.timings(now_s)
        self._metrics.end(reason, timings)
        return timings

    def _fail(self, sequence: Sequence, message: str, out: Delivery) -> None:
        if sequence.finished is None:
            timings = self._end(sequence, FinishReason.ERROR, time.monotonic())
            out.append((sequence.on_delta, Delta(finish_reason=FinishReason.ERROR, timings=timings, error=message)))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
