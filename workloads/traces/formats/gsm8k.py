"""GSM8K (Cobbe et al. 2021, https://github.com/openai/grade-school-math): JSONL with ``question`` and ``answer``.

The number behind ``####`` in ``answer`` is what is expected. One instruction follows each question, so that answers of
chat models say which of their numbers is the answer.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest

INSTRUCTION = "Think step by step. End with a line that says only: The answer is N."
_MARK = "####"
_KNOWN = ("question", "answer")


def _matches(head: Head) -> int:
    is_marked = isinstance(head.first.get("answer"), str) and _MARK in head.first["answer"]
    return head.explained(_KNOWN) if is_marked and head.knows("question") else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        question = cursor.text(cursor.needed(row, "question"), "question")
        answer = cursor.text(cursor.needed(row, "answer"), "answer")
        if _MARK not in answer:
            raise cursor.error(f"field 'answer' has no '{_MARK}' before its number")
        yield TraceRequest(
            id=f"gsm8k-{number}",
            messages=[{"role": "user", "content": f"{question}\n\n{INSTRUCTION}"}],
            expected=answer.rpartition(_MARK)[2].strip(),
            scorer="numeric",
            task="gsm8k",
            extra={key: value for key, value in row.items() if key not in _KNOWN},
        )


FORMAT = Format(
    name="gsm8k",
    title="GSM8K questions (JSONL)",
    assumes="no times; scored by the number that an answer settles on (numeric); an instruction to name it is added",
    matches=_matches,
    read=_read,
)
