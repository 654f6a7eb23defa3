"""The requests whose answers got worse under compression, as a trace that ``replay`` and ``compare`` run again."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvload.analysis.comparison.model import Comparison
    from kvload.analysis.records.pairs import ArmRuns

NEGATIVES_NAME = "negatives.jsonl"


def write_negatives(
    comparison: "Comparison", arms: "list[ArmRuns]", trace: Path, trace_format: str | None, target: Path
) -> int:
    """Write the negative samples of all methods, each with its scores and all arms' answers, in kvload's format.

    Args:
        comparison: what was found; without scored answers nothing is written.
        arms: the runs it was found in, for the answers' texts.
        trace: the trace they replayed, and its format (None: told by content).
        target: the file.

    Returns:
        how many requests were written.
    """
    answers = comparison.answers
    if answers is None:
        return 0
    wanted: dict[str, dict[str, Any]] = {}
    repeats: dict[str, int] = {}
    table = answers.scores
    for count in sorted(answers.quality.negatives, key=lambda each: each.theta):
        if count.task is not None or len(count.methods) != 1:
            continue
        for row in count.rows:
            entry = wanted.setdefault(table.ids[row], {"theta": {}, "scores": {}, "answers": {}})
            repeats.setdefault(table.ids[row], answers.repeat[row])
            entry["theta"][count.methods[0]] = count.theta
            entry["scores"] = {
                arms[0].name: float(table.base[row]),
                **{name: float(scores[row]) for name, scores in table.arms.items()},
            }
    if not wanted:
        return 0
    for arm in arms:
        for run in arm.runs:
            repeat = run.manifest().repeat or 0
            for record, _ in run.records():
                if repeats.get(record.request_id) == repeat:
                    wanted[record.request_id]["answers"][arm.name] = record.text
    from kvload.workloads.traces.formats import read_trace
    from kvload.workloads.traces.pick import pick
    from kvload.workloads.traces.trace import write_trace_file

    return write_trace_file(pick(lambda: read_trace(trace, trace_format), wanted), target)
