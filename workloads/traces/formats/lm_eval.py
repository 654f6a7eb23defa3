"""Sample files of lm-evaluation-harness (``lm_eval --log_samples``): JSONL, a document a line, for each of its filters.

``doc_id``, ``doc``, ``target`` and ``arguments``: the prompt with its generation settings, or (for questions that are
judged by likelihood) the prompt with each continuation. The prompt is sent as it was, few-shot examples included; as a
chat where it is a list of messages.
"""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from kvload.workloads.traces.formats.ifeval import instructions
from kvload.workloads.traces.reader import Cursor, Format, Head
from kvload.workloads.traces.trace import TraceRequest

_KNOWN = (
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash", "exact_match", "acc", "acc_norm", "f1", "em", "task", "task_name",
)  # fmt: skip
_NUMBER = re.compile(r"\$?[-+]?\d[\d,]*(?:\.\d+)?%?")
_LETTER = re.compile(r"\s*\(?([A-Z])\)?\.?\s*")
_ONE_WORD_TOKENS = 16
_LIST_CHARACTERS = 10_000


def _matches(head: Head) -> int:
    return head.explained(_KNOWN) if head.knows("doc_id") and head.knows("arguments") else 0


def _read(cursor: Cursor) -> Iterator[TraceRequest]:
    seen: set[str] = set()
    for row in cursor.objects():
        name = str(cursor.needed(row, "doc_id"))
        if name in seen:
            cursor.notes.rows("the same document under another filter: left out")
            continue
        seen.add(name)
        calls = _calls(cursor, cursor.needed(row, "arguments"))
        prompt = calls[0][0]
        given = calls[0][1] if len(calls[0]) > 1 else {}
        if isinstance(given, Mapping):
            fields, scored = _settings(cursor, given), _scored(cursor, row)
        else:
            letters = [_LETTER.fullmatch(call[1]) for call in calls if len(call) > 1 and isinstance(call[1], str)]
            if len(letters) != len(calls) or len(calls) < 2 or not all(letters):
                cursor.notes.rows("judged by the likelihood of given texts, not by an answer: left out")
                continue
            wanted = _gold(row.get("target"), [match[1] for match in letters if match])
            fields = {"max_tokens": _ONE_WORD_TOKENS}
            scored = {} if wanted is None else {"expected": wanted, "scorer": "choice"}
        cursor.notes.group("scored by", scored.get("scorer") or "nothing")
        doc = row.get("doc")
        subject = row.get("task_name") or row.get("task") or (doc.get("subject") if isinstance(doc, dict) else None)
        yield TraceRequest(
            id=f"doc-{name}",
            **_asked(cursor, prompt),
            **fields,
            **scored,
            task=None if subject is None else str(subject),
        )


def _calls(cursor: Cursor, arguments: object) -> list[list[Any]]:
    """The calls of the model that the row made: each a prompt, and settings or a continuation."""
    if isinstance(arguments, dict):
        found = [list(call.values()) if isinstance(call, dict) else call for call in arguments.values()]
    else:
        found = cursor.array(arguments, "arguments")
    if not found or not all(isinstance(call, list) and call and isinstance(call[0], str) for call in found):
        raise cursor.wrong("arguments", arguments, "a list of prompts with their settings")
    return found


def _asked(cursor: Cursor, prompt: str) -> dict[str, Any]:
    if prompt.lstrip().startswith("[{"):
        try:
            return {"messages": cursor.messages(json.loads(prompt), "arguments")}
        except (ValueError, RecursionError):
            pass  # a prompt that begins like a list of messages
    return {"prompt": prompt}


def _settings(cursor: Cursor, given: Mapping[str, Any]) -> dict[str, Any]:
    """Generation settings under the names that servers know."""
    until = given.get("until")
    stops = [until] if isinstance(until, str) else cursor.array(until or [], "until")
    sampling: dict[str, Any] = {"stop": [stop for stop in stops if stop]} if any(stops) else {}
    for name in ("temperature", "top_p"):
        if given.get(name) is not None and given.get("do_sample") is not False:
            sampling[name] = given[name]
    fields: dict[str, Any] = {"sampling": sampling}
    for name in ("max_gen_toks", "max_tokens", "max_new_tokens"):
        if given.get(name) is not None:
            fields["max_tokens"] = cursor.tokens(given[name], name)
            break
    return fields


def _scored(cursor: Cursor, row: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected, and the scorer that fits it: told by the target and the metrics the harness used."""
    doc = row.get("doc")
    if isinstance(doc, dict) and isinstance(doc.get("instruction_id_list"), list):
        expected, _ = instructions(cursor, doc)
        return {} if expected is None else {"expected": expected, "scorer": "ifeval"}
    target = row.get("target")
    target = _first(cursor, target)
    if target is None or str(target).strip() == "" or (isinstance(doc, dict) and "canonical_solution" in doc):
        return {}
    text = str(target).strip()
    metrics = {str(name) for name in row.get("metrics") or () if isinstance(name, str)}
    if "####" in text or _NUMBER.fullmatch(text):
        return {"expected": text.rpartition("####")[2].strip(), "scorer": "numeric"}
    if _LETTER.fullmatch(text):
        return {"expected": text, "scorer": "choice"}
    if any("f1" in name.lower() for name in metrics):
        return {"expected": text, "scorer": "f1"}
    if any("rouge" in name.lower() for name in metrics):
        return {"expected": text, "scorer": "rouge_l"}
    if any("contain" in name.lower() for name in metrics):
        return {"expected": text, "scorer": "contains"}
    return {"expected": text, "scorer": "exact" if metrics & {"exact_match", "em", "acc"} else "f1"}


def _first(cursor: Cursor, target: object) -> object:
    """The target, or the first of several right answers, which the harness writes as the text of a Python list."""
    if isinstance(target, str) and target.startswith("[") and target.endswith("]") and len(target) < _LIST_CHARACTERS:
        try:
            target = ast.literal_eval(target)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return target  # a text in brackets
    if isinstance(target, list):
        if len(target) > 1:
            cursor.notes.rows("several right answers: the first counts")
        return target[0] if target else None
    return target


def _gold(target: object, letters: list[str]) -> str | None:
    """The right letter of those offered, from itself or from its place."""
    text = str(target).strip()
    match = _LETTER.fullmatch(text)
    if match and match[1] in letters:
        return match[1]
    place = int(text) if text.isascii() and text.isdigit() and len(text) < 3 else None
    return letters[place] if place is not None and place < len(letters) else None


FORMAT = Format(
    name="lm-eval",
    title="lm-evaluation-harness samples (JSONL)",
    assumes="no times; prompts as they were sent, few-shot examples included; the scorer is chosen by target and "
    "metrics; of several filters the first counts",
    matches=_matches,
    read=_read,
)
