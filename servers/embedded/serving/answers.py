"""Answers as they go over HTTP: whole JSON documents and server-sent events, in the shapes of OpenAI and vLLM."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from kvload.servers.embedded.core.sequence import Delta, Timings, TokenLogprob
from kvload.servers.embedded.core.tokenizer import Tokenizer
from kvload.servers.embedded.serving.protocol import GenerationRequest, error_body

DONE = b"data: [DONE]\n\n"


class Answer:
    """Writes one request's answer.

    What does not change between events is encoded once, since an event is written for every token.

    Args:
        request: what was asked.
        prompt: the prompt's token ids.
        prompt_text: for ``echo``.
        model: the served name.
        number: makes the id unique.
        created: Unix seconds.
        tokenizer: for the texts in log probabilities.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Sequence[int],
        prompt_text: str,
        *,
        model: str,
        number: str,
        created: int,
        tokenizer: Tokenizer,
    ) -> None:
        self._request = request
        self._prompt = prompt
        self._prompt_text = prompt_text
        self._tokenizer = tokenizer
        kind = "chat.completion" if request.chat else "text_completion"
        self._id = f"{'chatcmpl' if request.chat else 'cmpl'}-{number}"
        self._head = {"id": self._id, "object": kind, "created": created, "model": model}
        self._chunk_head = {**self._head, "object": "chat.completion.chunk"} if request.chat else self._head
        opening = '{"index":0,"delta":{"content":' if request.chat else '{"index":0,"text":'
        self._prefix = f'data: {_dump(self._chunk_head)[:-1]},"choices":[{opening}'
        self._middle = '},"logprobs":null,"finish_reason":' if request.chat else ',"logprobs":null,"finish_reason":'
        self._suffix = "}]}\n\n"
        self._plain = not (
            request.continuous_usage
            or request.options["logprobs"] is not None
            or request.options["prompt_logprobs"] is not None
        )
        self._started = False
        self.generated = 0
        self._offset = 0

    def event(self, delta: Delta) -> bytes:
        """The event of one delta: a chat's first one is preceded by the role, the last one followed by the usage."""
        if delta.error is not None:
            return _event(error_body(500, delta.error)) + DONE
        self.generated += len(delta.tokens)
        text = delta.text
        before = b""
        if not self._started:
            self._started = True
            if self._request.chat:
                choice = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
                before = _event({**self._chunk_head, "choices": [{**choice, "finish_reason": None}]})
            elif self._request.echo:
                text = self._prompt_text + text
        if self._plain:
            reason = f'"{delta.finish_reason.value}"' if delta.finish_reason else "null"
            ids = f',"token_ids":{list(delta.tokens)}' if self._request.return_token_ids else ""
            data = f"{self._prefix}{json.dumps(text)}{self._middle}{reason}{ids}{self._suffix}".encode()
        else:
            data = _event(self._full_chunk(delta, text))
        if delta.finish_reason is None:
            return before + data
        return before + data + self._closing(delta.timings)

    def document(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """The whole answer of a request that did not ask for a stream."""
        text = "".join(delta.text for delta in deltas)
        tokens = [token for delta in deltas for token in delta.tokens]
        self.generated = len(tokens)
        logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
        prompt_logprobs = next((delta.prompt_logprobs for delta in deltas if delta.prompt_logprobs is not None), None)
        last = deltas[-1]
        choice: dict[str, Any] = {"index": 0}
        if self._request.chat:
            choice["message"] = {"role": "assistant", "content": text}
            choice["logprobs"] = self._chat_logprobs(logprobs)
        else:
            choice["text"] = self._prompt_text + text if self._request.echo else text
            choice["logprobs"] = self._completion_logprobs(prompt_logprobs, logprobs)
        choice["finish_reason"] = last.finish_reason.value if last.finish_reason else None
        if self._request.options["prompt_logprobs"] is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(prompt_logprobs)
        if self._request.return_token_ids:
            choice["prompt_token_ids"] = list(self._prompt)
            choice["token_ids"] = tokens
        document = {**self._head, "choices": [choice], "usage": self._usage()}
        return {**document, "metrics": _metrics(last.timings)} if last.timings else document

    def _closing(self, timings: Timings | None) -> bytes:
        if not self._request.include_usage:
            return DONE
        body = {**self._chunk_head, "choices": [], "usage": self._usage()}
        return _event({**body, "metrics": _metrics(timings)} if timings else body) + DONE

    def _full_chunk(self, delta: Delta, text: str) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0}
        if self._request.chat:
            choice["delta"] = {"content": text}
            choice["logprobs"] = self._chat_logprobs(delta.logprobs or ())
        else:
            choice["text"] = text
            choice["logprobs"] = self._completion_logprobs(delta.prompt_logprobs, delta.logprobs or ())
        choice["finish_reason"] = delta.finish_reason.value if delta.finish_reason else None
        if delta.prompt_logprobs is not None:
            choice["prompt_logprobs"] = self._prompt_logprobs(delta.prompt_logprobs)
        if self._request.return_token_ids:
            choice["token_ids"] = list(delta.tokens)
        body = {**self._chunk_head, "choices": [choice]}
        return {**body, "usage": self._usage()} if self._request.continuous_usage else body

    def _usage(self) -> dict[str, int]:
        prompt = len(self._prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.generated,
            "total_tokens": prompt + self.generated,
        }

    def _completion_logprobs(
        self, prompt: Iterable[TokenLogprob | None] | None, generated: Iterable[TokenLogprob]
    ) -> dict[str, Any] | None:
        """The four parallel lists of ``/v1/completions``; an echoed prompt's come first, its first token with null."""
        if self._request.options["logprobs"] is None:
            return None
        entries: list[tuple[int, TokenLogprob | None]] = []
        if self._request.echo and prompt is not None:
            entries += list(zip(self._prompt, prompt, strict=True))
        entries += [(entry.token, entry) for entry in generated]
        texts = [self._tokenizer.token_text(token) for token, _ in entries]
        offsets = []
        for text in texts:
            offsets.append(self._offset)
            self._offset += len(text)
        return {
            "tokens": texts,
            "token_logprobs": [entry and entry.logprob for _, entry in entries],
            "top_logprobs": [
                entry and {self._tokenizer.token_text(token): logprob for token, logprob in _with_own(entry)}
                for _, entry in entries
            ],
            "text_offset": offsets,
        }

    def _chat_logprobs(self, entries: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        if self._request.options["logprobs"] is None:
            return None
        return {
            "content": [
                {
                    **self._chat_token(entry.token, entry.logprob),
                    "top_logprobs": [self._chat_token(token, logprob) for token, logprob in entry.top],
                }
                for entry in entries
            ]
        }

    def _chat_token(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._tokenizer.token_text(token)
        return {"token": text, "logprob": logprob, "bytes": list(text.encode("utf-8", "replace"))}

    def _prompt_logprobs(self, entries: Iterable[TokenLogprob | None] | None) -> list[dict[str, Any] | None] | None:
        """As vLLM's: per token a mapping of ids, the actual token's first; null for the prompt's first token."""
        if entries is None:
            return None
        result: list[dict[str, Any] | None] = []
        for entry in entries:
            if entry is None:
                result.append(None)
                continue
            ranks = {token: rank for rank, (token, _) in enumerate(entry.top, 1)}
            result.append(
                {
                    str(token): {
                        "logprob": logprob,
                        "rank": ranks.get(token, entry.rank),
                        "decoded_token": self._tokenizer.token_text(token),
                    }
                    for token, logprob in _with_own(entry)
                }
            )
        return result


def _with_own(entry: TokenLogprob) -> list[tuple[int, float]]:
    return [(entry.token, entry.logprob), *(pair for pair in entry.top if pair[0] != entry.token)]


def _metrics(timings: Timings) -> dict[str, float | None]:
    def milliseconds(value_s: float | None) -> float | None:
        return None if value_s is None else round(1e3 * value_s, 3)

    return {
        "queue_time_ms": milliseconds(timings.queue_s),
        "prefill_time_ms": milliseconds(timings.prefill_s),
        "decode_time_ms": milliseconds(timings.decode_s),
        "time_to_first_token_ms": milliseconds(timings.ttft_s),
    }


def _dump(body: Any) -> str:
    return json.dumps(body, separators=(",", ":"))


def _event(body: Any) -> bytes:
    return f"data: {_dump(body)}\n\n".encode()
