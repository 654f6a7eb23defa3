"""A server of a toy language model with a "cache" that can be sound, rough or corrupt.

The model: a token's logit is the number of times the context's last token was followed by it, plus a fixed random part.
It reads its whole context, so a damaged context shows. The API is vLLM's and SGLang's as far as scoring needs it.
"""

import itertools
import json
import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

VOCABULARY = 1000


def logprobs(context: list[int]) -> list[float]:
    """Log-probabilities of every next token."""
    logits = [((token * 7919 + context[-1] * 31) % 97) / 97 for token in range(VOCABULARY)]
    for before, after in itertools.pairwise(context):
        if before == context[-1]:
            logits[after] += 2.0
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [logit - total for logit in logits]


def through_cache(context: list[int], fresh: int, kind: str) -> list[float]:
    """The same, where all but the ``fresh`` newest tokens come from the cache."""
    if kind == "corrupt":
        rng = random.Random(len(context))
        stored = [rng.randrange(VOCABULARY) for _ in context[: len(context) - fresh]]
        context = stored + context[len(context) - fresh :]
    values = logprobs(context)
    if kind == "rough":
        rng = random.Random(sum(context))
        values = [value + rng.gauss(0, 0.05) for value in values]
    return [math.nan] * VOCABULARY if kind == "broken" else values


@contextmanager
def serve(kind: str, *, forces: bool = True) -> Iterator[str]:
    """Run the server; yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = self._generate(body) if self.path == "/generate" else self._complete(body)
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
            context, bias = list(body["prompt"]), {int(k): v for k, v in body.get("logit_bias", {}).items()}
            if "prompt_logprobs" in body:
                step = 512  # what one scheduler step computed afresh
                rows: list[Any] = [None]
                for place in range(1, len(context)):
                    values = through_cache(context[:place], place % step or step, kind if place >= step else "sound")
                    rows.append({str(context[place]): {"logprob": values[context[place]]}})
                return {"choices": [{"text": "", "prompt_logprobs": rows}]}
            tokens, chosen = [], []
            for number in range(body["max_tokens"]):
                # The first token comes from the prompt's own keys and values, the others read the cache.
                values = through_cache(context, 1, kind) if number else logprobs(context)
                token = max(range(VOCABULARY), key=lambda t: values[t] + (bias.get(t, 0) if forces else 0))
                tokens.append(token)
                chosen.append(values[token])
                context.append(token)
            return {"choices": [{"text": "", "token_ids": tokens, "logprobs": {"token_logprobs": chosen}}]}

        def _generate(self, body: dict[str, Any]) -> dict[str, Any]:
            ids, start = body["input_ids"], body.get("logprob_start_len")
            if start is None:
                return {"text": "", "meta_info": {}}
            rows: list[Any] = [[None, ids[start], None]]
            for place in range(start + 1, len(ids)):
                rows.append([through_cache(ids[:place], place - start, kind)[ids[place]], ids[place], None])
            return {"text": "", "meta_info": {"input_token_logprobs": rows}}

        def log_message(self, *_: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
