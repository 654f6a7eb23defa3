"""IFEval's prompts (Zhou et al. 2023, google-research's ``input_data.jsonl``): JSONL.

``key``, ``prompt``, ``instruction_id_list`` and ``kwargs``, one object for each instruction; or the same with
``messages`` and ``id`` in place of ``prompt`` and ``key``. The instructions are what is expected; answers are scored by
the share of them that they follow (scorer ``ifeval``).
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest

_KNOWN = ("key", "id", "prompt", "messages", "instruction_id_list", "kwargs", "task")
_LANGUAGE = "language:response_language"
"""The one instruction whose check needs a model of languages."""


def _matches(head: Head) -> int:
    return head.explained(_KNOWN) if head.knows("prompt", "messages") and head.knows("instruction_id_list") else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    for number, row in enumerate(cursor.objects()):
        expected, task = instructions(cursor, row)
        yield TraceRequest(
            id=cursor.text(row["id"], "id") if "id" in row else f"ifeval-{row.get('key', number)}",
            messages=_asked(cursor, row),
            expected=expected,
            scorer=None if expected is None else "ifeval",
            task=task,
            extra={key: value for key, value in row.items() if key not in _KNOWN},
        )


def _asked(cursor: Cursor, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    if row.get("messages") is not None:
        return cursor.messages(row["messages"], "messages")
    return [{"role": "user", "content": cursor.text(cursor.needed(row, "prompt"), "prompt")}]


def instructions(cursor: Cursor, row: Mapping[str, Any]) -> tuple[str | None, str]:
    """What the ``ifeval`` scorer expects, as JSON, and the kind of the first instruction.

    None where one of the instructions is not checked by kvload: an answer that follows the others may still be wrong.

    Raises:
        TraceError: instructions and their arguments do not go together.
    """
    listed = cursor.array(cursor.needed(row, "instruction_id_list"), "instruction_id_list")
    names = [cursor.text(name, "instruction_id_list") for name in listed]
    given = cursor.array(row.get("kwargs", [{}] * len(names)), "kwargs")
    if not names or len(given) != len(names):
        raise cursor.error(f"there are {len(names)} instructions and {len(given)} 'kwargs'")
    task = names[0].partition(":")[0]
    if _LANGUAGE in names:
        cursor.notes.rows("not scored: the language of an answer is not checked")
        return None, task
    wanted = []
    for name, kwargs in zip(names, given, strict=True):
        arguments = cursor.mapping(kwargs or {}, "kwargs")
        wanted.append({"id": name, **{key: value for key, value in arguments.items() if value is not None}})
    return json.dumps(wanted, ensure_ascii=False), task


FORMAT = Format(
    name="ifeval",
    title="IFEval prompts (JSONL)",
    assumes="no times; scored by the share of verifiable instructions that an answer follows (ifeval); rows that ask "
    "for a language are not scored",
    matches=_matches,
    read=_read,
)
