"""From the command line to a serving process."""

import argparse
import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from aiohttp import web

import kvload
from kvload.errors import ServerError, UsageError
from kvload.servers.catalogue.asked import MethodSpec, parse_method
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import KVCache
from kvload.servers.embedded.core.engine import Delivery, Engine
from kvload.servers.embedded.core.metrics import Metrics
from kvload.servers.embedded.core.runner import Runner
from kvload.servers.embedded.core.sampler import Sampler
from kvload.servers.embedded.core.scheduler import Scheduler
from kvload.servers.embedded.core.sequence import Sequence
from kvload.servers.embedded.core.steps import StepLog
from kvload.servers.embedded.core.tokenizer import load_tokenizer
from kvload.servers.embedded.model.decode_graphs import graphs_for
from kvload.servers.embedded.model.model import Model, load_model
from kvload.servers.embedded.model.threads import Threads, choose_threads, idle_cores, usable_cores
from kvload.servers.embedded.serving.api import Service, build_app
from kvload.servers.embedded.serving.delivery import deliver

CPU_KV_BYTES = 512 * 2**20
GPU_SHARE = 0.85
STOP_TIMEOUT_S = 1.0
KEEP_ALIVE_S = 75.0
BACKLOG = 1024
"""Connections that may wait while the model is loaded or the loop is busy."""


def serve(options: argparse.Namespace, say: Callable[[str], None]) -> None:
    """Load and serve until SIGTERM or SIGINT.

    Args:
        options: of :func:`kvload.servers.embedded.serving.arguments.parse_arguments`.
        say: told of the progress, line by line; the last one is ``ready on http://HOST:PORT``.

    Raises:
        UsageError: an option, or a model the engine cannot serve.
        ServerError: the address cannot be listened on.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    method = parse_method(options.method)
    device = _device(options.device)
    # Loading is mostly reading; how many threads the model gets follows from its size.
    torch.set_num_threads(options.threads or 1)
    idle = idle_cores()
    listener = _listen(options.host, options.port)
    model = load_model(
        options.model,
        load_format=options.load_format,
        device=device,
        dtype=None if options.dtype == "auto" else getattr(torch, options.dtype),
        seed=options.seed,
        on_progress=say,
    )
    threads = choose_threads(model.weight_bytes, usable_cores(), idle)
    if options.threads is not None:
        threads = Threads(options.threads, "as asked")
    torch.set_num_threads(threads.count)
    tokenizer = load_tokenizer(options.model, model.vocab_size)
    say("allocating cache")
    chunk_tokens = options.chunk_tokens or max(512 if device.type == "cpu" else 2048, 2 * options.max_num_seqs)
    kv_bytes = options.kv_memory or _kv_bytes(device)
    cache = build_cache(model.geometry, method, kv_bytes, options.seed, chunk_tokens, options.kernels)
    max_model_len = settle_context(cache, options.max_model_len, model.context_limit)
    name = options.served_model_name or Path(options.model).name
    sampler = Sampler(model.eos_ids, seed=options.seed, device=device)
    scheduler: Scheduler[Sequence] = Scheduler(cache, max_sequences=options.max_num_seqs, chunk_tokens=chunk_tokens)
    metrics = build_metrics(name, method, cache, scheduler)
    loop = _event_loop()
    steps = None if options.step_log is None else StepLog(options.step_log)
    graphs = None if options.no_graphs else graphs_for(model, cache, options.max_num_seqs)
    engine = Engine(
        Runner(model, cache, sampler, graphs),
        scheduler,
        tokenizer,
        metrics,
        lambda delivery: _hand_over(loop, delivery),
        steps,
    )
    service = Service(
        engine=engine,
        cache=cache,
        tokenizer=tokenizer,
        metrics=metrics,
        model=name,
        model_path=options.model,
        vocab_size=model.vocab_size,
        max_model_len=max_model_len,
        info={**_info(options, method, model, cache, threads, chunk_tokens), "graphs": graphs is not None},
        created=int(time.time()),
        most_characters=max_model_len * tokenizer.longest_token,
    )
    try:
        loop.run_until_complete(_run(service, listener, options.host, say))
    finally:
        loop.close()
        if steps is not None and not engine.alive:
            steps.close()
    if engine.alive:
        # The thread is inside a long step; an orderly end would wait for it.
        logging.shutdown()
        os._exit(0)


async def _run(service: Service, listener: socket.socket, host: str, say: Callable[[str], None]) -> None:
    runner = web.AppRunner(
        build_app(service),
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=0.2,
        # Counts for a request's head as well: one that is not whole by then ends its connection.
        keepalive_timeout=KEEP_ALIVE_S,
    )
    await runner.setup()
    await web.SockSite(runner, listener).start()
    service.engine.start()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    port = listener.getsockname()[1]
    say(f"ready on http://{f'[{host}]' if ':' in host else host}:{port}")
    await stop.wait()
    say("stopping")
    await runner.cleanup()
    service.engine.stop(STOP_TIMEOUT_S)


def settle_context(cache: KVCache, wanted: int | None, limit: int | None) -> int:
    """The longest request to accept: what the user wants, or the most that both the model and the cache can take.

    Raises:
        UsageError: the user wants more than the model or the cache can take.
    """
    if wanted is not None:
        if limit is not None and wanted > limit:
            raise UsageError(f"the model takes {limit} positions", where=f"--max-model-len {wanted}")
        if not cache.fits(wanted, 0):
            raise UsageError(
                f"a cache of {cache.total_bytes} bytes cannot hold one request of this length",
                where=f"--max-model-len {wanted}",
                hint=f"give more --kv-memory, or a smaller length (the cache has {cache.pool_tokens} tokens)",
            )
        return wanted
    high = limit or 2**20
    if cache.fits(high, 0):
        return high
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cache.fits(middle, 0) else (low, middle)
    if low < 2:
        raise UsageError("the KV cache holds not even two tokens", where="--kv-memory", hint="give it more")
    return low


def build_metrics(name: str, method: MethodSpec, cache: KVCache, scheduler: Scheduler[Sequence]) -> Metrics:
    """The metrics with their gauges and the cache's labels."""
    return Metrics(
        name,
        {
            "method": str(method),
            "block_size": str(getattr(cache, "block_size", 0)),
            "kv_cache_size_tokens": str(cache.pool_tokens),
            "kv_cache_bytes": str(cache.total_bytes),
            "enable_prefix_caching": "False",
        },
        {
            "num_requests_running": ("Requests being computed.", lambda: len(scheduler.running)),
            "num_requests_waiting": ("Requests waiting for a place.", lambda: len(scheduler.waiting)),
            "kv_cache_usage_perc": (
                "Share of the KV cache in use, 0 to 1.",
                lambda: cache.allocated_bytes / cache.total_bytes,
            ),
            "kv_cache_allocated_bytes": ("Bytes of pages in use.", lambda: cache.allocated_bytes),
        },
    )


def _hand_over(loop: asyncio.AbstractEventLoop, delivery: Delivery) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends, nobody waits for the answers
        loop.call_soon_threadsafe(deliver, delivery)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no GPU", where="--device cuda")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else torch.device("cpu")


def _kv_bytes(device: torch.device) -> int:
    if device.type == "cpu":
        return CPU_KV_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return int(GPU_SHARE * free)


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before the model is loaded: one that is taken is told at once, and nobody else can take this one.

    A socket that is only bound can be bound again by another program until one of them listens.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServerError(f"cannot listen: {error.strerror or error}", where=f"{host}:{port}") from error
    return listener


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _info(
    options: argparse.Namespace, method: MethodSpec, model: Model, cache: KVCache, threads: Threads, chunk_tokens: int
) -> dict[str, Any]:
    import transformers

    device = model.geometry.device
    return {
        "version": kvload.__version__,
        "engine": "kvload",
        "method": str(method),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "dtype": str(model.geometry.dtype).removeprefix("torch."),
        "threads": threads.count,
        "threads_why": threads.why,
        "packed_layers": model.packed_layers,
        "kernels": cache.kernels_name,
        "kv_cache_bytes": cache.total_bytes,
        "kv_cache_size_tokens": cache.pool_tokens,
        "max_num_seqs": options.max_num_seqs,
        "chunk_tokens": chunk_tokens,
        "load_format": options.load_format,
        "recorded": model.recording is not None,
        "seed": options.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
