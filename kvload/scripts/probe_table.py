"""``make probe-table``: what each method does to the probe model's answers.

Makes questions by seed, compares all methods on them (the baseline twice), and prints a table in Markdown: accuracy per
task, mean length, share of answers whose length changed by half, bytes per token. Questions that a method did not
answer count in none of them, so how many it answered stands beside.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

METHODS = (
    "none",
    "fp8-e4m3",
    "int8",
    "int4",
    "kivi-4",
    "kivi-2",
    "gear-4",
    "gear-2",
    "snapkv:budget=512",
    "h2o:budget=512",
    "streamingllm:recent=512",
    "leankv",
    "k8v4",
    "k4v2",
)
TASKS = ("recall", "many", "track", "recite", "list", "count", "sum")


def main() -> int:
    """Run the comparison and print its table; returns the exit code of what failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m kvload.scripts.probe_table", description=__doc__)
    parser.add_argument("--methods", default=" ".join(METHODS), help="separated by spaces")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--context", default="1k,2k", help="prompt lengths, by comma")
    parser.add_argument("--requests", type=int, default=140)
    parser.add_argument("--concurrency", type=int, default=16, help="questions in flight, however slow a method is")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--engine", default="embedded")
    parser.add_argument("--kv-memory", default="512MiB")
    parser.add_argument("--out", type=Path, help="keep the experiment here (default: a new temporary folder)")
    options = parser.parse_args()
    out: Path = options.out or Path(tempfile.mkdtemp(prefix="kvload-probe-"))
    out.mkdir(parents=True, exist_ok=True)
    trace = out / "questions.jsonl"
    sample = ["traces", "sample", "--probe", "--requests", str(options.requests), "--context", options.context]
    sample += ["--tasks", options.tasks, "--seed", str(options.seed)]
    compare = ["compare", str(trace), "--engine", options.engine, "--kv-memory", options.kv_memory]
    compare += [word for method in options.methods.split() for word in ("--method", method)]
    compare += [
        "--concurrency",
        str(options.concurrency),
        "--repeats",
        "1",
        "--no-verify",
        "--out",
        str(out / "compare"),
    ]
    for command in ([*sample, "--out", str(trace)], compare):
        done = subprocess.run([sys.executable, "-m", "kvload", *command], check=False, stdout=sys.stderr)
        if done.returncode:
            return done.returncode
    print(table(json.loads((out / "compare" / "comparison.json").read_text(encoding="utf-8"))))
    return 0


def table(comparison: dict[str, Any]) -> str:
    """The table of a comparison as ``comparison.json`` has it, in Markdown."""
    quality = comparison["quality"]["arms"]
    changes = {change["name"]: change for change in comparison["comparisons"]}
    first = next(iter(quality.values()))
    tasks = [row["task"] for row in first["tasks"]]
    header = ["method", "bytes/token", "answered", *tasks, "all", "mean tokens", "abs(D) >= 50 %"]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    for arm in comparison["arms"]:
        name = arm["name"]
        is_base = bool(arm["baseline"])
        scores = first if is_base else quality[name]
        side = "base_mean" if is_base else "arm_mean"
        by_task = {row["task"]: row[side] for row in scores["tasks"]}
        moved = "" if is_base else _share(changes[name])
        rows.append(
            [
                name,
                _number(arm["info"].get("bytes_per_token"), "{:,.0f}"),
                f"{arm['answered']}/{arm['sent']}",
                *(_number(by_task.get(task), "{:.2f}") for task in tasks),
                _number(scores["overall"][side], "{:.3f}"),
                _number(arm["output_tokens"]["estimate"], "{:.1f}"),
                moved,
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _share(change: dict[str, Any]) -> str:
    lengths = change["lengths"]
    if lengths is None:
        return "-"
    return f"{lengths['shrunk']['estimate'] + lengths['grown']['estimate']:.0%}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


if __name__ == "__main__":
    sys.exit(main())
