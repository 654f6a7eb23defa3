"""Servers of vLLM with and without eviction, side by side on one GPU: their tokens, and their speed.

    python docs/results/gpu/eviction_servers.py tokens OUT --model servers/probe/model --prompts PROMPTS
    python docs/results/gpu/eviction_servers.py speed OUT --model LLAMA_8B
    python docs/results/gpu/eviction_servers.py gaps OUT --model servers/probe/model --prompts PROMPTS [--shard K/N]

``PROMPTS`` is JSON: ``{"few": [ids, ...], "many": [[ids, answer tokens], ...]}``. ``tokens`` asks every server the few,
one after the other and all at once, and the servers with a small cache the many, 64 at a time beside requests that are
given up; ``gaps`` holds all tokens against tests/vllm/eviction_reference.py. ``speed`` measures bursts of equal
requests at one server at a time, while the others idle. This Python must have vLLM and see kvload's plugin.
"""

import argparse
import contextlib
import http.client
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

GRAPHS = ("-cc", '{"mode":0,"cudagraph_mode":"FULL_DECODE_ONLY"}')
CHUNKS = ("--max-num-batched-tokens", "512")
SNAPKV = {"method": "snapkv", "budget": 256}
H2O = {"method": "h2o", "budget": 256, "recent": 128}
STREAM = {"method": "streamingllm", "start": 4, "recent": 240}
POOL, SMALL = 256 * 2**20, 40 * 2**20
Method = dict[str, Any] | None

TOKENS: dict[str, tuple[Method, int, tuple[str, ...]]] = {
    "stock": (None, POOL, GRAPHS),
    "snapkv": (SNAPKV, POOL, GRAPHS),
    "snapkv-chunks": (SNAPKV, POOL, GRAPHS + CHUNKS),
    "snapkv-eager": (SNAPKV, POOL, ("--enforce-eager",)),
    "h2o": (H2O, POOL, GRAPHS),
    "h2o-chunks": (H2O, POOL, GRAPHS + CHUNKS),
    "h2o-eager": (H2O, POOL, ("--enforce-eager",)),
    "streamingllm": (STREAM, POOL, GRAPHS),
    "streamingllm-chunks": (STREAM, POOL, GRAPHS + CHUNKS),
    "snapkv-all": ({"method": "snapkv", "budget": 8192}, POOL, GRAPHS),
    "h2o-all": ({"method": "h2o", "budget": 8192}, POOL, GRAPHS),
    "streamingllm-all": ({"method": "streamingllm", "recent": 8192}, POOL, GRAPHS),
    "stock-small": (None, SMALL, GRAPHS + CHUNKS),
    "snapkv-small": (SNAPKV, SMALL, GRAPHS + CHUNKS),
    "h2o-small": (H2O, SMALL, GRAPHS + CHUNKS),
    "streamingllm-small": (STREAM, SMALL, GRAPHS + CHUNKS),
}
SPEED: tuple[dict[str, tuple[Method, int, tuple[str, ...]]], ...] = (
    {
        "snapkv": ({"method": "snapkv", "budget": 1024}, 8 * 2**30, GRAPHS),
        "h2o": ({"method": "h2o", "budget": 1024, "recent": 512}, 8 * 2**30, GRAPHS),
        "streamingllm": ({"method": "streamingllm", "start": 4, "recent": 1020}, 8 * 2**30, GRAPHS),
    },
    {"stock": (None, 36 * 2**30, GRAPHS)},
)
BURSTS = ((32, 8000), (32, 8000), (64, 8000), (64, 1000), (32, 1000))


class Server:
    """One vLLM."""

    def __init__(self, name: str, url: str, process: subprocess.Popen[bytes]) -> None:
        self.name, self.url, self.process = name, url, process

    def complete(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """Greedy tokens."""
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=400) as answer:
            return list(json.load(answer)["choices"][0]["token_ids"])

    def stream(self, prompt: Sequence[int], tokens: int, lines: int | None = None) -> tuple[float, list[float]]:
        """When a request was sent, and when each of its tokens came; given up after so many lines."""
        connection = http.client.HTTPConnection(self.url.removeprefix("http://"), timeout=400)
        body = {"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}
        sent = time.monotonic()
        connection.request(
            "POST",
            "/v1/completions",
            json.dumps({**body, "return_token_ids": True}),
            {"Content-Type": "application/json"},
        )
        came: list[float] = []
        for number, line in enumerate(connection.getresponse()):
            if lines is not None and number >= lines:
                break
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:]).get("choices") or [{}]
                came += [time.monotonic()] * len(choices[0].get("token_ids") or [])
        connection.close()
        return sent, came

    def gauge(self, name: str) -> float:
        """A figure of its metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{name}{{")), 0.0)

    @contextlib.contextmanager
    def watched(self, every_s: float = 0.05) -> Iterator[dict[str, float]]:
        """Peaks of running requests and of the cache's use, and preemptions, while something runs."""
        seen = {"running": 0.0, "use": 0.0, "preemptions": -self.gauge("num_preemptions_total")}
        over = threading.Event()

        def watch() -> None:
            while not over.wait(every_s):
                seen["running"] = max(seen["running"], self.gauge("num_requests_running"))
                seen["use"] = max(seen["use"], self.gauge("kv_cache_usage_perc"))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
            seen["preemptions"] += self.gauge("num_preemptions_total")


@contextlib.contextmanager
def servers(
    wanted: dict[str, tuple[Method, int, tuple[str, ...]]], model: str, more: Sequence[str]
) -> Iterator[dict[str, Server]]:
    """Start servers together, wait for all, and end them."""
    started: dict[str, Server] = {}
    for number, (name, (method, pool, arguments)) in enumerate(wanted.items()):
        env = {**os.environ, "VLLM_PLUGINS": "kvload", "OMP_NUM_THREADS": "1"}
        if method is not None:
            env["KVLOAD_VLLM_METHOD"] = json.dumps(method)
        port = 8101 + number
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model, "--host", "127.0.0.1"]
        command += ["--port", str(port), "--block-size", "16", "--max-num-seqs", "64", "--no-enable-prefix-caching"]
        command += ["--kv-cache-memory-bytes", str(pool), *more, *arguments]
        command += ["--attention-backend", "FLASH_ATTN" if method is None else "CUSTOM"]
        with Path(f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        started[name] = Server(name, f"http://127.0.0.1:{port}", process)
    try:
        for server in started.values():
            while server.process.poll() is None:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{server.url}/health", timeout=2).close()
                    break
                time.sleep(1)
        yield {name: server for name, server in started.items() if server.process.poll() is None}
    finally:
        for server in started.values():
            server.process.terminate()
        for server in started.values():
            server.process.wait(60)


def together(work: Callable[[Any], Any], items: Sequence[Any], at_once: int) -> list[Any]:
    """Results of some calls, so many at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, items))


def ask_tokens(out: Path, model: str, prompts: dict[str, Any]) -> None:
    """Every server's tokens into ``OUT/tokens.json``."""
    found: dict[str, Any] = {}

    def ask(server: Server) -> None:
        if not server.name.endswith("-small"):
            server.complete(prompts["few"][0], 4)
            found[server.name] = [server.complete(prompt, 160) for prompt in prompts["few"]]
            found[f"{server.name}, at once"] = together(lambda prompt: server.complete(prompt, 160), prompts["few"], 8)
            return
        given_up = threading.Thread(
            target=lambda: together(lambda item: server.stream(item[0], 400, item[1] // 8), prompts["many"][:32], 8)
        )
        began = time.monotonic()
        with server.watched() as seen:
            given_up.start()
            found[server.name] = together(lambda item: server.complete(*item), prompts["many"], 64)
            given_up.join()
        print(f"{server.name}: {time.monotonic() - began:.2f} s, {seen}", flush=True)

    with servers(TOKENS, model, ("--max-model-len", "4608", "--gpu-memory-utilization", "0.04")) as running:
        for small in (False, True):
            together(ask, [server for name, server in running.items() if name.endswith("-small") == small], 16)
    (out / "tokens.json").write_text(json.dumps(found), encoding="utf-8")
    for name in ("snapkv-all", "h2o-all", "streamingllm-all"):
        equal = sum(a == b for a, b in zip(found["stock"], found.get(name, []), strict=False))
        print(f"{name}: {equal} of {len(found['stock'])} answers are stock's")


def measure_speed(model: str) -> None:
    """Bursts of equal requests at one server after the other."""
    source = random.Random(5)
    more = ("--load-format", "dummy", "--max-model-len", "9216", "--gpu-memory-utilization", "0.2")
    for phase in SPEED:
        with servers(phase, model, more) as running:
            for server in running.values():
                server.complete([7] * 2000, 4)
                together(lambda prompt, at=server: at.stream(prompt, 16), [[9] * 8000] * 2, 2)
            for count, length in BURSTS:
                prompts = [[source.randint(5, 4000) for _ in range(length)] for _ in range(count)]
                for server in running.values():
                    burst(server, prompts)


def burst(server: Server, prompts: Sequence[Sequence[int]], tokens: int = 128) -> None:
    """All prompts at once; prints what came of it."""
    began = time.monotonic()
    with server.watched(0.1) as seen:
        answers = together(lambda prompt: server.stream(prompt, tokens), prompts, len(prompts))
    wall = time.monotonic() - began
    first = sorted(came[0] - sent for sent, came in answers)
    tpot = statistics.mean((came[-1] - came[0]) / (tokens - 1) for _, came in answers)
    last = max(came[0] for _, came in answers)
    alone = [b - a for _, came in answers for a, b in itertools.pairwise(came) if a > last and b > a]
    step = f"{1e3 * statistics.median(alone):.2f} ms" if alone else "never alone"
    print(
        f"{len(prompts)} x {len(prompts[0])}: {server.name:13s} {len(prompts) * tokens / wall:.0f} tokens/s, "
        f"TTFT mean {statistics.mean(first):.2f} s, p95 {first[int(0.95 * len(first))]:.2f} s, "
        f"TPOT mean {1e3 * tpot:.1f} ms, step once all prompts are read {step}, {seen}",
        flush=True,
    )


def hold_against_reference(out: Path, model: str, prompts: dict[str, Any], shard: str) -> None:
    """Gaps of all tokens in ``OUT/tokens.json``, or of every n-th answer."""
    sys.path.insert(0, str(Path(__file__).parents[3]))
    import torch

    from tests.vllm.eviction_reference import Reference

    if torch.cuda.is_available():
        torch.set_default_device("cuda")
    methods: dict[str, tuple[str, dict[str, int]]] = {
        "stock": ("none", {}),
        "snapkv": ("snapkv", {"budget": 256, "window": 32, "kernel": 5}),
        "h2o": ("h2o", {"budget": 256, "recent": 128}),
        "streamingllm": ("streamingllm", {"start": 4, "recent": 240}),
    }
    tokens = json.loads((out / "tokens.json").read_text(encoding="utf-8"))
    mine, of = (int(number) for number in shard.split("/"))
    for name, answers in tokens.items():
        kind = next(method for method in methods if name.startswith(method))
        if "-all" in name:
            continue
        reference = Reference(Path(model), methods[kind][0], **methods[kind][1])
        asked = [item[0] for item in prompts["many"]] if "-small" in name else prompts["few"]
        chosen = list(zip(asked, answers, strict=True))[mine::of]
        gaps = [reference.gaps(prompt, answer).cpu() for prompt, answer in chosen]
        every = torch.cat(gaps)
        print(
            f"{name}: {len(every)} tokens, {float((every == 0).float().mean()):.4f} the reference's own, largest gap "
            f"{float(every.max()):.3f}, {sum(bool((one > 1).any()) for one in gaps)} answers with a gap over 1",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokens", "speed", "gaps"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--shard", default="0/1")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "speed":
        measure_speed(options.model)
        return
    prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
    if options.what == "tokens":
        ask_tokens(options.out, options.model, prompts)
    else:
        hold_against_reference(options.out, options.model, prompts, options.shard)


if __name__ == "__main__":
    main()
