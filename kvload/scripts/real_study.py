"""``make real-study``: what each method does to a real instruct model's answers to questions people ask.

Every arm's server is launched once and answers every set of questions; runs that are complete already are not made
again, so that a study that was interrupted goes on where it stopped. The baseline is launched a second time at the end:
what differs between the two is the noise floor. Then ``kvload compare`` judges the run folders, and a table is printed
in Markdown.

    python -m kvload.scripts.real_study DATA --out STUDY                    # embedded engine
    python -m kvload.scripts.real_study DATA --out STUDY --engine vllm --python /opt/vllm/bin/python
    python -m kvload.scripts.real_study DATA --out STUDY --table --pictures docs/results   # of what is there, as SVG

DATA is a folder with the questions in any trace format: ``gsm8k.jsonl``, ``mtbench.jsonl``, ``ifeval.jsonl``,
``koala.jsonl``; ``kvload traces convert`` makes them from the published files. What is not there is left out.
"""

import argparse
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvload.errors import KvloadError

EMBEDDED_ARMS = (
    "none",
    "int8",
    "fp8-e4m3",
    "int4",
    "kivi-4",
    "kivi-2",
    "gear-4",
    "snapkv:budget=64",
    "h2o:budget=96,recent=48",
    "streamingllm:recent=96",
    "leankv",
    "k8v4",
    "k4v2",
)
"""Budgets are those at which eviction acts at all: the questions are of about 130 tokens, the answers of 200 to 300."""

VLLM_ARMS = (
    "none",
    "fp8-e4m3",
    "fp8-e5m2",
    "int8-per-token-head",
    "int4-per-token-head",
    "turboquant-k8v4",
    "turboquant-4bit",
    "turboquant-k3v4",
    "turboquant-3bit",
)
ARMS = {"embedded": EMBEDDED_ARMS, "vllm": VLLM_ARMS}
SETS = ("gsm8k:64:320", "mtbench:64:320", "ifeval:64:320", "koala:64:320")
HEADINGS = (
    "method",
    "n",
    "identical",
    "all tokens (95 %)",
    "mean ratio (95 %)",
    "grown / shrunk by half",
    "cut at the cap",
    "score",
    "verdict on lengths",
)
LEAST_METHODS = 4
"""Fewer methods than this have no ranks to speak of."""
PROBE = Path("docs/results/probe.md")
BASELINE, AGAIN = "none", "none-again"


@dataclass(frozen=True)
class Questions:
    """One set: its name, how many requests of it are sent, and the cap of their answers in tokens."""

    name: str
    limit: int
    cap: int

    @classmethod
    def parse(cls, text: str) -> "Questions":
        """``NAME:LIMIT:CAP``."""
        name, limit, cap = text.split(":")
        return cls(name, int(limit), int(cap))


@dataclass(frozen=True)
class Arm:
    """One server of the study: the arm's name, its method, the repeat, and the server's name while it runs."""

    name: str
    method: str
    repeat: int
    server: str


def main() -> int:
    """Make the runs and print the table; returns the exit code of what failed, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m kvload.scripts.real_study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, help="folder of the question files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the study")
    parser.add_argument("--engine", choices=sorted(ARMS), default="embedded")
    parser.add_argument("--python", help="the Python that the engine is installed in")
    parser.add_argument("--model", help="model folder (default: the one of make real-model)")
    parser.add_argument("--arms", help="methods, separated by spaces (default: by the engine)")
    parser.add_argument("--sets", default=" ".join(SETS), help="NAME:REQUESTS:CAP, separated by spaces")
    parser.add_argument("--concurrency", type=int, default=64, help="requests in flight")
    parser.add_argument("--kv-memory", default="512MiB")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=1, help="servers side by side; answers are judged, not times")
    parser.add_argument("--engine-args", default="", help="arguments for the engine, as one word")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further arm after so long")
    parser.add_argument("--probe", type=Path, default=PROBE, help="page with the probe's table, to compare ranks with")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, make nothing")
    parser.add_argument("--pictures", type=Path, help="folder for the two pictures of what is there")
    options = parser.parse_args()
    # The server of the arm at hand is stopped however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sets = [Questions.parse(text) for text in options.sets.split()]
    arms = options.arms.split() if options.arms else list(ARMS[options.engine])
    try:
        if not options.table:
            _run(options, sets, arms)
        _table(options.out, sets, options.probe)
        if options.pictures:
            from kvload.scripts.real_study_pictures import draw

            draw(options.out, [each.name for each in sets], options.probe, options.pictures)
    except KvloadError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_status)
    return 0


def _run(options: argparse.Namespace, sets: list[Questions], arms: list[str]) -> None:
    from kvload.scripts.real_model import make

    model = options.model or str(make())
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    # The baseline again comes after the others, so that what drifts with time shows between the two.
    order = [*((arm, arm) for arm in arms), (AGAIN, BASELINE)]

    def one(repeat: int, arm: str, method: str, number: int) -> None:
        missing = [each for each in sets if not _complete(_folder(options.out, each, arm, repeat))]
        missing = [each for each in missing if _file(options.data, each) is not None]
        if not missing or time.monotonic() - began > 60 * options.minutes:
            return
        print(f"{time.monotonic() - began:7.0f} s  {arm}, repeat {repeat}", file=sys.stderr, flush=True)
        _one_arm(options, model, Arm(arm, method, repeat, f"study-{os.getpid()}-{number}"), missing)

    with ThreadPoolExecutor(options.at_once) as pool:
        work = [(repeat, arm, method) for repeat in range(options.repeats) for arm, method in order]
        for done in [pool.submit(one, *each, number) for number, each in enumerate(work)]:
            done.result()


def _one_arm(options: argparse.Namespace, model: str, arm: Arm, sets: list[Questions]) -> None:
    launch = ["launch", model, "--engine", options.engine, "--method", arm.method, "--name", arm.server]
    launch += ["--kv-memory", options.kv_memory]
    launch += ["--python", options.python] if options.python else []
    launch += ["--", *shlex.split(options.engine_args)] if options.engine_args else []
    if _kvload(launch, options.out / "launches.log"):
        print(f"           {arm.name} did not start: see launches.log", file=sys.stderr, flush=True)
        return
    try:
        for each in sets:
            folder = _folder(options.out, each, arm.name, arm.repeat)
            replay = ["replay", str(_file(options.data, each)), "--server", arm.server, "--mode", "free"]
            replay += ["--limit", str(each.limit), "--max-tokens", str(each.cap)]
            replay += ["--concurrency", str(options.concurrency), "--timeout", "30min", "--drain", "30min"]
            replay += ["--too-long", "drop", "--no-calibrate", "--quiet", "--out", str(folder)]
            _kvload(replay, options.out / "replays.log")
    finally:
        _kvload(["stop", arm.server], options.out / "launches.log")


def _kvload(arguments: list[str], log: Path) -> int:
    with log.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-m", "kvload", *arguments], stdout=out, stderr=subprocess.STDOUT, check=False
        )
    return done.returncode


def _file(data: Path, questions: Questions) -> Path | None:
    return next((path for path in sorted(data.glob(f"{questions.name}*.jsonl")) if path.is_file()), None)


def _folder(out: Path, questions: Questions, arm: str, repeat: int) -> Path:
    plain = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in arm)
    return out / questions.name / f"r{repeat}-{plain}"


def _complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return not manifest.get("partial", True)


def _table(out: Path, sets: list[Questions], probe: Path) -> None:
    for each in sets:
        runs = sorted(path for path in (out / each.name).glob("r*-*") if _complete(path))
        bases = [path for path in runs if path.name.endswith(f"-{BASELINE}")]
        if not bases:
            continue
        floors = [path for path in runs if path.name.endswith(f"-{AGAIN}")]
        compare = ["compare", *map(str, [*bases, *(path for path in runs if path not in [*bases, *floors])])]
        compare += [word for floor in floors for word in ("--floor-run", str(floor))]
        compare += ["--json"]
        done = subprocess.run([sys.executable, "-m", "kvload", *compare], capture_output=True, text=True, check=False)
        try:
            found = json.loads(done.stdout)
        except ValueError:
            print(f"{each.name}: {done.stderr.strip()}", file=sys.stderr)
            continue
        (out / f"{each.name}.json").write_text(done.stdout, encoding="utf-8")
        print(f"\n### {each.name}: {each.limit} requests at most, answers cut at {each.cap} tokens\n")
        print(f"| {' | '.join(HEADINGS)} |")
        print("| --- |" + " ---: |" * (len(HEADINGS) - 2) + " --- |")
        for row in rows(found):
            print("| " + " | ".join(row) + " |")
        if probe.is_file():
            for line in agreement(found, probe_scores(probe.read_text(encoding="utf-8"))):
                print(f"\n{line}")


def rows(found: dict[str, Any]) -> list[list[str]]:
    """One row for each arm of a comparison's JSON, the baseline's first."""
    arms = {arm["name"]: arm for arm in found["arms"]}
    base = next(arm for arm in found["arms"] if arm["baseline"])
    scores = {change["arm"]: change for change in found.get("quality", {}).get("changes", []) if change["task"] is None}
    base_score = next((_score(change["base_mean"]) for change in scores.values()), "")
    table = [[base["name"], str(base["answered"]), "", "", "", "", _percent(base["cap_hits"]), base_score, ""]]
    for comparison in found["comparisons"]:
        name, lengths = comparison["name"], comparison["lengths"]
        texts = found.get("quality", {}).get("arms", {}).get(name, {}).get("texts") or {}
        change = scores.get(name)
        verdict = next(
            (one["lead"] for one in found["verdicts"].get(name, {}).get("findings", []) if one["topic"] == "lengths"),
            "",
        )
        label = f"{name} (the baseline again)" if comparison["floor"] else name
        table.append(
            [
                label,
                str(lengths["n"]) if lengths else "0",
                _percent(texts.get("identical")),
                _change(lengths and lengths["ratio_total"]),
                _change(lengths and lengths["ratio_mean"]),
                f"{_percent(lengths['grown'])} / {_percent(lengths['shrunk'])}" if lengths else "",
                _percent(arms[name]["cap_hits"]),
                _score(change["arm_mean"]) if change else "",
                verdict,
            ]
        )
    return table


def probe_scores(page: str) -> dict[str, float]:
    """Score over all tasks by method (without its options), from the table that ``make probe-table`` prints."""
    table = [
        [cell.strip() for cell in line.strip("| \n").split("|")] for line in page.splitlines() if line.startswith("|")
    ]
    heading = next(row for row in table if "all" in row)
    place = heading.index("all")
    scored = [row for row in table if len(row) == len(heading) and row[place].replace(".", "").isdecimal()]
    return {row[0].partition(":")[0]: float(row[place]) for row in scored if "(" not in row[0]}


def agreement(found: dict[str, Any], probe: dict[str, float]) -> list[str]:
    """How methods rank on the probe and on the real model: Spearman's rank correlation, and over how many methods."""
    from scipy.stats import spearmanr

    scores = {change["arm"]: change for change in found.get("quality", {}).get("changes", []) if change["task"] is None}
    changed: dict[str, tuple[float, ...]] = {}
    for comparison in found["comparisons"]:
        name, lengths = comparison["name"].partition(":")[0], comparison["lengths"]
        texts = found.get("quality", {}).get("arms", {}).get(comparison["name"], {}).get("texts") or {}
        if comparison["floor"] or name not in probe or not lengths or not texts.get("identical"):
            continue
        score = scores.get(comparison["name"])
        known = score is not None and None not in (score["base_mean"], score["arm_mean"])
        worse = score["base_mean"] - score["arm_mean"] if score is not None and known else 0.0
        changed[name] = abs(math.log(lengths["ratio_total"]["estimate"])), 1 - texts["identical"]["estimate"], worse
    if len(changed) < LEAST_METHODS:
        return []
    lost = [1 - probe[name] for name in changed]
    lines = []
    columns = ("how far the answers' total length moves", "the share of answers that differ", "the score they lose")
    for place, what in enumerate(columns):
        moved = [values[place] for values in changed.values()]
        # Where all are equal there are no ranks: a model that gets nothing right loses nothing.
        if len(set(moved)) > 1 and len(set(lost)) > 1:
            result = spearmanr(lost, moved)
            figure = f"{result.statistic:+.2f} (p = {result.pvalue:.2f}), {len(changed)} methods"
            lines.append(f"Rank correlation of the probe's lost score with {what}: {figure}.")
    return lines


def _score(mean: float | None) -> str:
    return "" if mean is None else f"{mean:.3f}"


def _percent(estimate: dict[str, Any] | None) -> str:
    return "" if not estimate or estimate["estimate"] is None else f"{estimate['estimate']:.0%}"


def _change(ratio: dict[str, Any] | None) -> str:
    if not ratio or ratio["estimate"] is None:
        return ""
    text = f"{ratio['estimate'] - 1:+.1%}"
    if ratio["low"] is None or ratio["high"] is None:
        return text
    return f"{text} ({ratio['low'] - 1:+.1%} to {ratio['high'] - 1:+.1%})"


if __name__ == "__main__":
    sys.exit(main())
