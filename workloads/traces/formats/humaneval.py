"""HumanEval's problems (Chen et al. 2021, https://github.com/openai/human-eval): JSONL, mostly as .gz.

``task_id``, ``prompt`` (a function's head and docstring), ``entry_point``, ``canonical_solution`` and ``test``. The
score is pass@1, for which the answers' code has to be run: kvload runs no code that a model wrote. Everything needed to
run it elsewhere is kept in ``extra``.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest

INSTRUCTION = "Complete this Python function. Answer with the whole function only."
_KNOWN = ("task_id", "prompt", "entry_point", "canonical_solution", "test")


def _matches(head: Head) -> int:
    return head.explained(_KNOWN) if head.knows("task_id") and head.knows("prompt") and head.knows("entry_point") else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for row in cursor.objects():
        prompt = cursor.text(cursor.needed(row, "prompt"), "prompt").strip("\n")
        cursor.notes.rows("not scored: answers would have to be run as code (pass@1)")
        yield TraceRequest(
            id=cursor.text(cursor.needed(row, "task_id"), "task_id"),
            messages=[{"role": "user", "content": f"{INSTRUCTION}\n\n```python\n{prompt}\n```"}],
            task="humaneval",
            extra={key: value for key, value in row.items() if key not in {"task_id", "prompt"}},
        )


FORMAT = Format(
    name="humaneval",
    title="HumanEval problems (JSONL)",
    assumes="no times; asked as a chat; not scored: kvload runs no code that a model wrote",
    matches=_matches,
    read=_read,
)
