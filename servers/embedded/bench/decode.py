"""``python -m kvload.servers.embedded.bench.decode``: tokens per second of the embedded engine, method by method.

A real server process is started for every method, and streaming requests are sent to it over HTTP, all at once, with
random prompts and answers of a fixed length. Without ``--model`` the model is a tiny random Llama (hidden size 256, 4
layers, 4 query and 2 KV heads, vocabulary 4096).
"""

import argparse
import asyncio
import contextlib
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kvload.errors import KvloadError, ServerError

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
START_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class StreamTimes:
    """One answer: when its first and last token came after the request was sent, and how many there were."""

    first_s: float
    last_s: float
    tokens: int


@dataclass(frozen=True)
class Measurement:
    """One method at one number of streams.

    Attributes:
        tokens_per_s: all tokens over the time from the first request to the last token, prefill included.
        decode_tokens_per_s: streams over the median time per token.
        kv_bytes_per_token: size of the pool over the tokens it holds, all layers and heads.
        recorded: whether the model's forward pass ran as a recording (see :mod:`kvload.servers.embedded.model.graph`).
    """

    method: str
    streams: int
    prompt_tokens: int
    output_tokens: int
    tokens_per_s: float
    decode_tokens_per_s: float
    ttft_ms: float
    tpot_ms: float
    kv_bytes_per_token: float
    preemptions: int
    threads: int
    device: str
    dtype: str
    recorded: bool


@contextlib.contextmanager
def running_server(arguments: Sequence[str]) -> Iterator[str]:
    """Start a server on a free port and stop it in the end.

    Yields:
        its address, ``127.0.0.1:PORT``.

    Raises:
        ServerError: it ended before it was ready; with the end of what it said.
    """
    command = [sys.executable, "-m", "kvload.servers.embedded", "--port", "0", *arguments]
    with tempfile.TemporaryFile("w+b") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            yield _wait_until_ready(process, log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]", log: Any) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        ended = process.poll() is not None
        size = log.seek(0, 2)
        log.seek(max(0, size - 2**16))
        said = log.read().decode("utf-8", "replace")
        log.seek(0, 2)
        ready = re.search(r"^ready on http://(\S+)", said, re.MULTILINE)
        if ready:
            return ready[1]
        if ended or time.monotonic() > deadline:
            raise ServerError("the server did not start", hint="\n  ".join(said.splitlines()[-8:]))
        time.sleep(0.05)


async def _get(address: str, path: str) -> str:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n".encode())
    data = await reader.read()
    writer.close()
    return data.partition(b"\r\n\r\n")[2].decode()


async def stream_once(address: str, body: dict[str, Any]) -> StreamTimes:
    """Send one request and time its tokens by the arrival of their events.

    Tokens are counted by the usage that ends the stream: an event may carry several.

    Raises:
        ServerError: the server refused, or the answer did not have the tokens asked for.
    """
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=2**20)
    payload = json.dumps(body | {"stream_options": {"include_usage": True}}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(payload)}\r\n\r\n"
    sent = time.perf_counter()
    writer.write(head.encode() + payload)
    first = last = 0.0
    tail = b""
    while True:
        data = await reader.read(2**16)
        now = time.perf_counter()
        if (tail + data).count(b'"finish_reason":') > tail.count(b'"finish_reason":'):
            first = first or now
            last = now
        tail = (tail + data)[-2048:]
        if not data or b"data: [DONE]" in tail:
            break
    writer.close()
    counted = re.findall(rb'"completion_tokens": ?(\d+)', tail)
    tokens = int(counted[-1]) if counted else 0
    if tokens != body["max_tokens"]:
        raise ServerError(f"{tokens} tokens came instead of {body['max_tokens']}: {tail.decode('utf-8', 'replace')}")
    return StreamTimes(first - sent, last - sent, tokens)


async def measure(address: str, method: str, streams: int, prompt: int, output: int) -> Measurement:
    """One round: ``streams`` requests sent at once, each answered with ``output`` tokens."""
    info = json.loads(await _get(address, "/version"))
    vocabulary = json.loads(await _get(address, "/v1/models"))["data"][0]["vocab_size"]
    rng = random.Random(streams)

    def body() -> dict[str, Any]:
        return {
            "prompt": [rng.randrange(3, vocabulary) for _ in range(prompt)],
            "max_tokens": output,
            "min_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }

    before = await _preemptions(address)
    await stream_once(address, {**body(), "max_tokens": 8, "min_tokens": 8})
    began = time.perf_counter()
    times = await asyncio.gather(*(stream_once(address, body()) for _ in range(streams)))
    elapsed = time.perf_counter() - began
    tpot = statistics.median((t.last_s - t.first_s) / max(1, t.tokens - 1) for t in times)
    return Measurement(
        method=method,
        streams=streams,
        prompt_tokens=prompt,
        output_tokens=output,
        tokens_per_s=sum(t.tokens for t in times) / elapsed,
        decode_tokens_per_s=streams / tpot,
        ttft_ms=1e3 * statistics.median(t.first_s for t in times),
        tpot_ms=1e3 * tpot,
        kv_bytes_per_token=info["kv_cache_bytes"] / info["kv_cache_size_tokens"],
        preemptions=await _preemptions(address) - before,
        threads=info["threads"],
        device=info["device"],
        dtype=info["dtype"],
        recorded=info["recorded"],
    )


async def _preemptions(address: str) -> int:
    found = re.search(r"^kvload:num_preemptions_total\S* (\d+)", await _get(address, "/metrics"), re.MULTILINE)
    return int(found[1]) if found else 0


def build_parser() -> argparse.ArgumentParser:
    """The bench's options."""
    parser = argparse.ArgumentParser(prog="python -m kvload.servers.embedded.bench.decode", description=__doc__)
    parser.add_argument("--model", help="model folder (default: a tiny random Llama)")
    parser.add_argument("--load-format", choices=("auto", "dummy"), default="dummy")
    parser.add_argument("--methods", default="none,int8,kivi-4,streamingllm", help="comma-separated; options by ':'")
    parser.add_argument("--streams", default="1,64", help="comma-separated (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=32, help="tokens (default: %(default)s)")
    parser.add_argument("--output", type=int, default=128, help="tokens (default: %(default)s)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--kv-memory", help="size of the cache (default: the server's)")
    parser.add_argument("--threads", help="torch's threads (default: the server's)")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    return parser


def main() -> int:
    """Run the bench; returns the exit status."""
    options = build_parser().parse_args()
    results: list[Measurement] = []
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            (Path(folder) / "config.json").write_text(json.dumps(TINY_LLAMA), encoding="utf-8")
        arguments = ["--model", options.model or folder, "--load-format", options.load_format]
        arguments += ["--served-model-name", "bench", "--device", options.device, "--dtype", options.dtype]
        for flag, value in (("--kv-memory", options.kv_memory), ("--threads", options.threads)):
            arguments += [flag, value] if value else []
        print(f"{'method':<28}{'streams':>8}{'tokens/s':>11}{'decode/s':>11}", end="")  # noqa: T201
        print(f"{'TTFT ms':>10}{'TPOT ms':>10}{'B/token':>10}{'preempt':>9}", flush=True)  # noqa: T201
        for method in _split_methods(options.methods):
            try:
                with running_server([*arguments, "--method", method]) as address:
                    for streams in map(int, options.streams.split(",")):
                        result = asyncio.run(measure(address, method, streams, options.prompt, options.output))
                        results.append(result)
                        _print_row(result)
            except (KvloadError, OSError) as error:
                print(f"{method}: {error}", file=sys.stderr)  # noqa: T201
                return 3
    last = results[-1]
    print(f"{last.device}, {last.dtype}, {last.threads} threads, prompts of {options.prompt} tokens")  # noqa: T201
    if options.json:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=1), encoding="utf-8")
    return 0


def _split_methods(text: str) -> list[str]:
    """Split at commas that do not separate a method's options."""
    return re.split(r",(?![\w-]+=)", text)


def _print_row(result: Measurement) -> None:
    print(f"{result.method:<28}{result.streams:>8}{result.tokens_per_s:>11.1f}", end="")  # noqa: T201
    print(f"{result.decode_tokens_per_s:>11.1f}{result.ttft_ms:>10.1f}{result.tpot_ms:>10.2f}", end="")  # noqa: T201
    print(f"{result.kv_bytes_per_token:>10.0f}{result.preemptions:>9}", flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
