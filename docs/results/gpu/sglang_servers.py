"""Servers of SGLang with and without kvload's methods, side by side on one GPU: their tokens, and their speed.

    python docs/results/gpu/sglang_servers.py tokens OUT --model servers/probe/model --prompts PROMPTS --group GROUP
    python docs/results/gpu/sglang_servers.py gaps OUT --model servers/probe/model --prompts PROMPTS
    python docs/results/gpu/sglang_servers.py speed OUT --model LLAMA_8B

``PROMPTS`` is JSON: ``{"few": [ids, ...], "many": [[ids, answer tokens], ...]}``. ``tokens`` asks a group of servers
the few, one after the other and all at once, some also the many; ``gaps`` holds all tokens found in OUT against the
second implementations under tests/vllm, in float32, and those of packed pages also against what bfloat16 alone would
change. ``speed`` measures bursts of equal requests at one server at a time, while the others idle. This Python must
have SGLang and see kvload's plugin; ``gaps`` needs torch and transformers alone.
"""

import argparse
import contextlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

STOCK = ("--attention-backend", "fa3", "--disable-radix-cache", "--page-size", "1")
EVICTS = (
    "--attention-backend", "kvload", "--radix-cache-backend", "kvload", "--disable-radix-cache", "--page-size", "1",
)  # fmt: skip
SHARES = ("--attention-backend", "kvload", "--page-size", "64")
PACKS = (*SHARES, "--disable-radix-cache", "--max-running-requests", "32")
CHUNKS = ("--chunked-prefill-size", "512")
SMALL = (*CHUNKS, "--max-total-tokens", "9000")
EAGER = ("--cuda-graph-backend-decode", "disabled")
RETRACTS = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "60"}
"""SGLang's own switch for tests: every so many steps it retracts a request that runs."""

STREAM = {"method": "streamingllm", "start": 4, "recent": 236}
SNAPKV = {"method": "snapkv", "budget": 256}
H2O = {"method": "h2o", "budget": 256, "recent": 128}
Case = tuple[dict[str, Any] | None, tuple[str, ...], dict[str, str]]

GROUPS: dict[str, dict[str, Case]] = {
    "plain": {
        "stock": (None, STOCK, {}),
        "streamingllm-all": ({"method": "streamingllm", "recent": 8192}, EVICTS, {}),
        "snapkv-all": ({"method": "snapkv", "budget": 8192}, EVICTS, {}),
        "h2o-all": ({"method": "h2o", "budget": 8192}, EVICTS, {}),
        "streamingllm": (STREAM, EVICTS, {}),
        "snapkv": (SNAPKV, EVICTS, {}),
        "h2o": (H2O, EVICTS, {}),
        "stock-small": (None, STOCK + SMALL, {}),
        "snapkv-small": (SNAPKV, EVICTS + SMALL, {}),
        "int8": ({"method": "int8"}, PACKS, {}),
        "int4": ({"method": "int4"}, PACKS, {}),
        "kivi-4": ({"method": "kivi-4"}, PACKS + CHUNKS, {}),
        "k8v4": ({"method": "k8v4"}, PACKS, {}),
    },
    "harder": {
        "stock-retracted": (None, STOCK + CHUNKS, RETRACTS),
        "streamingllm-retracted": (STREAM, EVICTS + CHUNKS, RETRACTS),
        "snapkv-retracted": (SNAPKV, EVICTS + CHUNKS, RETRACTS),
        "h2o-retracted": (H2O, EVICTS + CHUNKS, RETRACTS),
        "kivi-4-retracted": ({"method": "kivi-4"}, PACKS + CHUNKS, RETRACTS),
        "int4-retracted": ({"method": "int4"}, PACKS + CHUNKS, RETRACTS),
        "snapkv-eager": (SNAPKV, EVICTS + EAGER, {}),
        "h2o-eager": (H2O, EVICTS + EAGER, {}),
        "int8-shared": ({"method": "int8"}, SHARES, {}),
        "int4-shared": ({"method": "int4"}, SHARES, {}),
        "k4v2": ({"method": "k4v2"}, PACKS, {}),
        "kivi-2": ({"method": "kivi-2"}, PACKS, {}),
    },
}
MANY = ("-small", "-retracted")
"""Ends of names of servers that are asked the many."""

GIB = 2**30
PLAIN = 32 * 8 * 2 * 128 * 2
"""Bytes of a token of the 8B shape."""
SCORED = PLAIN + 32 * 8 * 4


def sized(cache_bytes: int, token_bytes: int) -> tuple[str, ...]:
    """A pool of so many bytes."""
    return ("--max-total-tokens", str(cache_bytes // token_bytes // 64 * 64))


SPEED: dict[str, Case] = {
    "stock": (None, STOCK + sized(8 * GIB, PLAIN), {}),
    "snapkv": ({"method": "snapkv", "budget": 1024}, EVICTS + sized(8 * GIB, SCORED), {}),
    "int4": ({"method": "int4"}, (*SHARES, "--disable-radix-cache", *sized(8 * GIB, 32 * 8 * 136)), {}),
    "streamingllm": ({"method": "streamingllm", "recent": 1020}, EVICTS + sized(8 * GIB, PLAIN), {}),
    "h2o": ({"method": "h2o", "budget": 1024, "recent": 512}, EVICTS + sized(8 * GIB, SCORED), {}),
    "stock-36-gib": (None, STOCK + sized(36 * GIB, PLAIN), {}),
}
BURSTS = ((32, 8000), (32, 8000), (32, 1000))


class Server:
    """One SGLang."""

    def __init__(self, name: str, url: str, process: subprocess.Popen[bytes]) -> None:
        self.name, self.url, self.process = name, url, process

    def _open(self, prompt: Sequence[int], tokens: int, **more: Any) -> Any:
        sampling = {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True}
        body = {"input_ids": list(prompt), "sampling_params": sampling, **more}
        request = urllib.request.Request(
            f"{self.url}/generate", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        return urllib.request.urlopen(request, timeout=300)

    def complete(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """Greedy tokens."""
        return self.complete_shared(prompt, tokens)[0]

    def complete_shared(self, prompt: Sequence[int], tokens: int) -> tuple[list[int], int]:
        """Greedy tokens, and how many of the prompt's came from the prefix cache."""
        with self._open(prompt, tokens) as answer:
            said = json.load(answer)
        return list(said["output_ids"]), int(said["meta_info"].get("cached_tokens") or 0)

    def stream(self, prompt: Sequence[int], tokens: int) -> tuple[float, list[float]]:
        """When a request was sent, and when each of its tokens came."""
        sent, came = time.monotonic(), []
        with self._open(prompt, tokens, stream=True) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    done = json.loads(line[6:])["meta_info"]["completion_tokens"]
                    came += [time.monotonic()] * (done - len(came))
        return sent, came

    def gauges(self) -> dict[str, float]:
        """Its metrics by name."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as answer:
            found = re.findall(r"^sglang:(\w+)\{[^}]*\} (\S+)$", answer.read().decode(), re.MULTILINE)
        return {name: float(value) for name, value in found}

    @contextlib.contextmanager
    def watched(self, every_s: float = 0.1) -> Iterator[dict[str, float]]:
        """Peaks of running requests and used slots while something runs, and retractions."""
        seen = {"running": 0.0, "used": 0.0, "retracted": -self.gauges().get("num_retracted_requests_total", 0.0)}
        over = threading.Event()

        def watch() -> None:
            while not over.wait(every_s):
                with contextlib.suppress(OSError):
                    now = self.gauges()
                    seen["running"] = max(seen["running"], now.get("num_running_reqs", 0.0))
                    seen["used"] = max(seen["used"], now.get("num_used_tokens", 0.0))

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield seen
        finally:
            over.set()
            thread.join()
            time.sleep(1)
            end = self.gauges()
            seen["retracted"] += end.get("num_retracted_requests_total", 0.0)
            seen["left"] = end.get("num_used_tokens", float("nan"))


@contextlib.contextmanager
def servers(out: Path, wanted: dict[str, Case], model: str, more: Sequence[str]) -> Iterator[dict[str, Server]]:
    """Start servers together, wait for all, and end them; those that do not start are left out, and said."""
    started: dict[str, Server] = {}
    began = time.monotonic()
    for number, (name, (method, arguments, extra)) in enumerate(wanted.items()):
        env = {**os.environ, "SGLANG_PLUGINS": "kvload", "OMP_NUM_THREADS": "1", **extra}
        if method is not None:
            env["KVLOAD_SGLANG_METHOD"] = json.dumps(method)
        port = 8901 + 20 * number
        command = [sys.executable, "-m", "sglang.launch_server", "--model-path", model, "--host", "127.0.0.1"]
        command += ["--port", str(port), "--sampling-backend", "pytorch", "--enable-metrics", "--skip-server-warmup"]
        command += [*more, *arguments]
        with (out / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        started[name] = Server(name, f"http://127.0.0.1:{port}", process)
        time.sleep(1.5)
    try:
        ready = {}
        for name, server in started.items():
            while server.process.poll() is None and time.monotonic() - began < 280:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"{server.url}/health", timeout=2).close()
                    ready[name] = server
                    break
                time.sleep(1)
        missing = sorted(started.keys() - ready.keys())
        print(f"{len(ready)} servers up in {time.monotonic() - began:.0f} s; not: {missing}", flush=True)
        yield ready
    finally:
        for server in started.values():
            with contextlib.suppress(OSError):
                os.killpg(server.process.pid, signal.SIGTERM)
        time.sleep(5)
        for server in started.values():
            with contextlib.suppress(OSError):
                os.killpg(server.process.pid, signal.SIGKILL)


def together(work: Callable[[Any], Any], items: Sequence[Any], at_once: int) -> list[Any]:
    """Results of some calls, so many at a time."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(work, items))


def ask_tokens(out: Path, model: str, prompts: dict[str, Any], group: str) -> None:
    """Every server's answers into ``OUT/GROUP.json``: names, cases, and prompts, answers and tokens from the cache."""
    found: list[Any] = []
    wanted = GROUPS[group]

    def ask(server: Server) -> None:
        few, rows = prompts["few"], []
        server.complete(few[0], 4)
        rows.append(("", [[p, *server.complete_shared(p, 160)] for p in few]))
        at_once = together(lambda p: server.complete(p, 160), few, 8)
        rows.append((", at once", [[p, a, 0] for p, a in zip(few, at_once, strict=True)]))
        with server.watched() as seen:
            server.complete(few[-1], 400)
        print(f"{server.name}: {len(few[-1])} + 400 tokens, most slots used {seen['used']:.0f}", flush=True)
        if server.name.endswith("-shared"):
            longer = [[*p, *a[:90]] for p, a, _ in rows[0][1]]
            rows.append((", longer", [[p, *server.complete_shared(p, 100)] for p in longer]))
            print(f"{server.name}: tokens from the cache {[hit for _, _, hit in rows[-1][1]]}", flush=True)
        if server.name.endswith(MANY):
            many, began = prompts["many"][:64], time.monotonic()
            with server.watched() as seen:
                answers = together(lambda item: server.complete(*item), many, 48)
            rows.append((", many", [[p, a, 0] for (p, _), a in zip(many, answers, strict=True)]))
            print(f"{server.name}, many: {time.monotonic() - began:.1f} s, {seen}", flush=True)
        found.extend([server.name + kind, server.name, answers] for kind, answers in rows)

    def safely(server: Server) -> None:
        try:
            ask(server)
        except (OSError, ValueError, KeyError) as error:
            print(f"{server.name} FAILED: {type(error).__name__}: {error}", flush=True)

    more = ("--context-length", "4608", "--mem-fraction-static", "0.5", "--cuda-graph-max-bs", "32")
    with servers(out, {n: sized_pool(case) for n, case in wanted.items()}, model, more) as running:
        together(safely, list(running.values()), 4)
    (out / f"{group}.json").write_text(json.dumps(found), encoding="utf-8")
    answers = {name: [answer for _, answer, _ in rows] for name, _, rows in found}
    for name in [name for name in answers if "-all" in name and "stock" in answers]:
        stock = answers["stock, at once" if name.endswith("at once") else "stock"]
        print(f"{name}: {sum(a == b for a, b in zip(stock, answers[name], strict=True))} of {len(stock)} are stock's")


def sized_pool(case: Case) -> Case:
    """A case whose pool has a size."""
    method, arguments, extra = case
    given = () if "--max-total-tokens" in arguments else ("--max-total-tokens", "59968")
    return method, arguments + given, extra


def gaps_of(model: str, case: str, prompt: list[int], answer: list[int], hit: int) -> tuple[list[float], list[float]]:
    """For each token, the reference's best logit over that of the token; for packed pages also over bfloat16's own."""
    import torch

    torch.set_num_threads(1)
    method, arguments, _ = next(cases[case] for cases in GROUPS.values() if case in cases)
    name = "none" if method is None else method["method"]
    if name in {"none", "streamingllm", "snapkv", "h2o"}:
        from tests.vllm import eviction_reference

        eviction_reference.BLOCK = 16 if name == "h2o" else 1
        options = {"window": 32, "kernel": 5} if name == "snapkv" else {}
        options |= {key: value for key, value in (method or {}).items() if key != "method"}
        return eviction_reference.Reference(Path(model), name, **options).gaps(prompt, answer).tolist(), []
    from tests.vllm.packed_reference import Reference

    chunk = int(arguments[arguments.index(CHUNKS[0]) + 1]) if CHUNKS[0] in arguments else 8192
    reference = Reference(Path(model), name)
    own = reference.gaps(prompt, answer, chunk=chunk, hit=hit)
    ids = torch.tensor([[*prompt, *answer[:-1]]])
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        reference.model.to(dtype)
        with torch.no_grad():
            logits.append(reference.model(input_ids=ids).logits[0, len(prompt) - 1 :].float())
    rounded = logits[0].max(-1).values - logits[0].gather(1, logits[1].argmax(-1, keepdim=True))[:, 0]
    return own.tolist(), rounded.tolist()


def hold_against_reference(out: Path, model: str, processes: int) -> None:
    """Gaps of all tokens in OUT; of the many, every second answer."""
    sys.path.insert(0, str(Path(__file__).parents[3]))
    found = [row for path in sorted(out.glob("*.json")) for row in json.loads(path.read_text(encoding="utf-8"))]
    with ProcessPoolExecutor(processes) as pool:
        asked = [
            (name, [pool.submit(gaps_of, model, case, *row) for row in rows[:: 2 if name.endswith("many") else 1]])
            for name, case, rows in found
            if "-all" not in case
        ]
        for name, futures in asked:
            both = [future.result() for future in futures]
            print(f"{name}: {told([own for own, _ in both])}", flush=True)
            if both[0][1]:
                print(f"    bfloat16 alone: {told([rounded for _, rounded in both])}", flush=True)


def told(gaps: list[list[float]]) -> str:
    """Gaps of some answers in words."""
    every = list(itertools.chain(*gaps))
    own = sum(gap == 0 for gap in every) / len(every)
    return (
        f"{len(every)} tokens, {own:.4f} the reference's own, mean gap {statistics.mean(every):.4f}, largest "
        f"{max(every):.3f}, {sum(max(one) > 1 for one in gaps)} of {len(gaps)} answers with a gap over 1"
    )


def measure_speed(out: Path, model: str, at_once: int) -> None:
    """Bursts of equal requests at one server after the other, so many servers resident at a time."""
    source = random.Random(5)
    more = ("--load-format", "dummy", "--context-length", "9216", "--mem-fraction-static", "0.85")
    more += ("--cuda-graph-max-bs", "64")
    names = list(SPEED)
    for place in range(0, len(names), at_once):
        with servers(out, {name: SPEED[name] for name in names[place : place + at_once]}, model, more) as running:
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
    with server.watched(0.2) as seen:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tokens", "gaps", "speed"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--group", choices=list(GROUPS), default="plain")
    parser.add_argument("--at-once", type=int, default=2, help="servers of the 8B shape that fit on the card")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.what == "speed":
        measure_speed(options.out, options.model, options.at_once)
    elif options.what == "gaps":
        hold_against_reference(options.out, options.model, options.processes)
    else:
        prompts = json.loads(options.prompts.read_text(encoding="utf-8"))
        ask_tokens(options.out, options.model, prompts, options.group)


if __name__ == "__main__":
    main()
