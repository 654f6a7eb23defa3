"""``make demo``: the main job on this machine, as the very commands a user would type.

Launches the embedded engine, replays the shipped sample trace, prints the report and stops the server; then compares
three methods on questions with known answers. ``--only sweep`` (``make demo-sweep``) raises the load on two methods in
a cache that is short of room. Whatever happens, the server it started is stopped.
"""

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SERVER = "demo"
QUESTIONS = ["--requests", "36", "--context", "512", "--tasks", "recall,list,recite", "--rate", "4", "--seed", "7"]
LONG_ANSWERS = ["--requests", "120", "--input-mean", "64", "--input-max", "256", "--output-mean", "96", "--seed", "3"]
SWEEP = ["--method", "none", "--method", "int8", "--rates", "4,12,36", "--duration", "6s", "--target", "0.8"]
SHORT_OF_ROOM = ["--kv-memory", "8MiB", "--max-model-len", "1024", "--mode", "forced", "--limit", "48"]
METHODS = ["none", "int8", "streamingllm:recent=128"]


def main() -> int:
    """Run the demo and return the first failing command's exit code, else 0."""
    parser = argparse.ArgumentParser(prog="python -m kvload.scripts.demo", description=__doc__)
    parser.add_argument("--out", type=Path, help="keep the run folders here (default: a new temporary folder)")
    parser.add_argument("--only", choices=["replay", "compare", "sweep"], help="make only this part")
    options = parser.parse_args()
    out: Path = options.out or Path(tempfile.mkdtemp(prefix="kvload-demo-"))
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    # A state folder of its own: the demo sees no other server, and nobody's `kvload replay` finds the demo's.
    environ = os.environ | {"KVLOAD_STATE_DIR": str(out / "state")}
    parts = [options.only] if options.only else ["replay", "compare"]
    status = 0
    for part in parts:
        status = status or {"replay": _replay, "compare": _compare, "sweep": _sweep}[part](out, environ)
    print(f"\nThe demo took {time.monotonic() - started:.0f} s; its run folders are in {out}")
    return status


def _replay(out: Path, environ: dict[str, str]) -> int:
    try:
        return _kvload(["launch", "--engine", "embedded", "--name", SERVER], environ) or _kvload(
            ["replay", "sample:demo", "--slo", "ttft=500ms,tpot=50ms", "--out", str(out / "replay")], environ
        )
    finally:
        _kvload(["stop", SERVER], environ)


def _compare(out: Path, environ: dict[str, str]) -> int:
    trace = out / "questions.jsonl"
    arms = [word for method in METHODS for word in ("--method", method)]
    return _kvload(["traces", "sample", "--probe", *QUESTIONS, "--out", str(trace)], environ) or _kvload(
        ["compare", str(trace), "--engine", "embedded", *arms, "--slo", "ttft=500ms", "--out", str(out / "compare")],
        environ,
    )


def _sweep(out: Path, environ: dict[str, str]) -> int:
    trace = out / "answers.jsonl"
    limits = ["--slo", "ttft=2s,tpot=300ms", "--no-verify", "--out", str(out / "sweep")]
    return _kvload(["traces", "sample", *LONG_ANSWERS, "--out", str(trace)], environ) or _kvload(
        ["sweep", str(trace), "--engine", "embedded", *SWEEP, *SHORT_OF_ROOM, *limits], environ
    )


def _kvload(arguments: list[str], environ: dict[str, str]) -> int:
    print(f"\n$ kvload {shlex.join(arguments)}", flush=True)
    with subprocess.Popen([sys.executable, "-m", "kvload", *arguments], env=environ) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the command has it as well, and stops its server: it must not be killed meanwhile


if __name__ == "__main__":
    sys.exit(main())
