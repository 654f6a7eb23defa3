"""What users of vllm bench, AIPerf and GuideLLM type out of habit: done where that is the same, else explained."""

from collections.abc import Sequence

from kvload.errors import UsageError

SENDING = frozenset({"replay", "compare", "capacity", "sweep"})
"""Commands that send requests."""

OTHER_WORDS = {
    "--backend": "kvload asks the server itself; any OpenAI-compatible one works: --url http://HOST:PORT",
    "--dataset-name": "kvload takes the file: kvload replay FILE; made-up loads: kvload traces sample",
    "--dataset-path": "kvload takes the file as its argument: kvload replay FILE",
    "--dataset": "kvload takes the file as its argument: kvload replay FILE",
    "--input-file": "kvload takes the file as its argument: kvload replay FILE",
    "--data": "kvload takes the file as its argument; made-up loads: kvload traces sample",
    "--tokenizer": "kvload sends texts or token ids as they are, and counts as the server does: no tokenizer is needed",
    "--endpoint": "the trace decides: messages go to /v1/chat/completions, texts and token ids to /v1/completions",
    "--endpoint-type": "the trace decides: messages go to /v1/chat/completions, texts and token ids to /v1/completions",
    "--percentile-metrics": "every report has TTFT, TPOT, ITL and E2E",
    "--metric-percentiles": "every report has p50, p90, p95 and p99; kvload export has every request",
    "--save-result": "every run is kept in its folder: --out FOLDER",
    "--save-detailed": "every run keeps every request: --out FOLDER, then kvload export FOLDER",
    "--result-dir": "the run folder is --out FOLDER",
    "--result-filename": "the run folder is --out FOLDER",
    "--output-artifact-dir": "the run folder is --out FOLDER",
    "--artifact-dir": "the run folder is --out FOLDER",
    "--served-model-name": "the name to ask for is --model",
    "--ramp-up-strategy": "rates over time are --ramp 1-8/60s,8/2min",
    "--ramp-up-start-rps": "rates over time are --ramp 1-8/60s,8/2min",
    "--ramp-up-end-rps": "rates over time are --ramp 1-8/60s,8/2min",
    "--output-len": "made-up loads have their lengths in the trace: kvload traces sample --input 1024 --output 128",
    "--random-input-len": "made-up loads: kvload traces sample --input 1024 --output 128",
    "--random-output-len": "made-up loads: kvload traces sample --input 1024 --output 128",
    "--random-prefix-len": "made-up loads: kvload traces sample --input 1024 --output 128 --shared-prefix 2048",
    "--sharegpt-output-len": "the recorded lengths are replayed with --mode forced",
    "--isl": "made-up loads: kvload traces sample --input 1024 --output 128",
    "--osl": "made-up loads: kvload traces sample --input 1024 --output 128",
    "--synthetic-input-tokens-mean": "made-up loads: kvload traces sample --input 1024 --output 128",
    "--output-tokens-mean": "made-up loads: kvload traces sample --input 1024 --output 128",
    "--streaming": "kvload always streams: without it there is no time to first token",
    "--request-count": "at most so many requests are --limit (or --num-prompts)",
    "--max-requests": "at most so many requests are --limit (or --num-prompts)",
    "--warmup-request-count": "requests before the run are --warmups",
    "--profile": "the load is chosen by --rate, --concurrency, or kvload sweep",
    "--rate-type": "the load is chosen by --rate, --concurrency, or kvload sweep",
    "--max-seconds": "use the part of a trace: --end 5min; kvload sweep has --duration",
    "--use-beam-search": "kvload measures sampling; beam search is not supported",
    "--lora-modules": "a row of the trace may name its model; --model names one for all",
    "--plot-timeline": "every page shows TTFT, TPOT and throughput over time: kvload report RUN",
}
"""Options of others that kvload has no like of, with what to do instead."""


def translate(command: str, arguments: Sequence[str]) -> list[str]:
    """The arguments with others' spellings in kvload's, up to ``--``.

    Raises:
        UsageError: ``--host`` and ``--port`` do not make an address.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given, rest = list(arguments[:end]), list(arguments[end:])
    given = ["--help" if word == "-h" else word for word in given]
    if command == "launch":
        # elsewhere the model is an option
        given = [word.removeprefix("--model=") for word in given if word != "--model"]
    if command not in SENDING:
        return given + rest
    found: list[str] = []
    host: str | None = None
    port: str | None = None
    words = iter(given)
    for word in words:
        flag, separator, value = word.partition("=")
        if flag == "--base-url":
            found += ["--url", value if separator else next(words, "")]
        elif flag in {"--host", "--port"}:
            value = value if separator else next(words, "")
            host, port = (value, port) if flag == "--host" else (host, value)
        elif flag == "--ignore-eos":
            found += ["--mode", "forced"]
        elif flag == "--disable-tqdm":
            found.append("--quiet")
        else:
            found.append(word)
    if host is not None or port is not None:
        if not port or not port.isdecimal():
            raise UsageError("a server is --url http://HOST:PORT, or --host and --port", where="--host, --port")
        found += ["--url", f"http://{host or '127.0.0.1'}:{port}"]
    return found + rest


def explain(option: str) -> str | None:
    """What to do instead of an option that others have; None for one that nobody has."""
    return OTHER_WORDS.get(option.partition("=")[0])
