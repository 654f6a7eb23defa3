"""MT-bench's questions (Zheng et al. 2023, FastChat's ``question.jsonl``): JSONL, a conversation of two turns a line.

``question_id``, ``category``, ``turns`` (texts) and sometimes ``reference``. The second turn follows the server's own
first answer. A model judges the answers in the original; here there is nothing to score against.
"""

from collections.abc import Iterator

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest

_KNOWN = ("question_id", "category", "turns", "reference")


def _matches(head: Head) -> int:
    is_one = head.knows("question_id") and isinstance(head.first.get("turns"), list)
    return head.explained(_KNOWN) if is_one else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for row in cursor.objects():
        session = f"mtbench-{cursor.needed(row, 'question_id')}"
        category = row.get("category")
        turns = cursor.array(cursor.needed(row, "turns"), "turns")
        if not turns:
            raise cursor.error("field 'turns' is empty")
        for turn, text in enumerate(turns):
            yield TraceRequest(
                id=f"{session}-{turn + 1}",
                messages=[{"role": "user", "content": cursor.text(text, f"turns[{turn}]")}],
                session=session,
                turn=turn,
                task=None if category is None else cursor.text(category, "category"),
                extra={"reference": row["reference"]} if row.get("reference") is not None and not turn else {},
            )


FORMAT = Format(
    name="mtbench",
    title="MT-bench questions (JSONL)",
    assumes="no times; a turn follows the former's answer at once; nothing to score against (a model judges them)",
    matches=_matches,
    read=_read,
)
