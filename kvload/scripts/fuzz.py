"""``make fuzz``: answers that nobody would send, by the ten thousand, through the parser, and damaged run folders
through the commands that read them; none may raise.

Each answer is made from the pieces of real answers by a seed, cut and damaged, under every framing, and every outcome
must be a status, with texts that can be written down. Prints how many ended how, and exits with 70 if one raised.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import msgspec

from kvload.errors import ExitStatus
from kvload.workloads.client.answer import Answer, parse_answer
from kvload.workloads.client.http1 import Framing, ResponseHead
from kvload.workloads.client.raw import RawStream
from kvload.workloads.run.recording import build_record
from kvload.workloads.schedule.request import PlannedRequest

_PIECES: tuple[bytes, ...] = (
    *(
        b"data: ",
        b"data:",
        b"\n",
        b"\n\n",
        b"\r\n",
        b"\r\n\r\n",
        b": ping\n\n",
        b"event: error\n",
        b"error: ",
        b"id: 1\n",
    ),
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"0", b"-7", b"10.0", b"1e400", b"-Infinity", b"NaN"),
    *(b'"choices"', b'"delta"', b'"content"', b'"text"', b'"usage"', b'"completion_tokens"', b'"finish_reason"'),
    *(b'"token_ids"', b'"error"', b'"metrics"', b'"queue_time_ms"', b'"tool_calls"', b'"reasoning_content"'),
    *(b"9" * 30, b"9" * 5000, b"[" * 3000, b'{"a":' * 3000, b'"\\ud83d"', b"\xff\xfe\x80", b"\x00", b"[DONE]"),
)
_EVENTS: tuple[bytes, ...] = (
    b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}',
    b'{"choices":[{"index":0,"delta":{"content":" a"},"finish_reason":null}]}',
    b'{"choices":[{"index":0,"text":" b","finish_reason":null,"token_ids":[1,2]}]}',
    b'{"choices":[{"index":0,"delta":{"reasoning_content":"t"}}]}',
    b'{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"name":"f","arguments":"{}"}}]}}]}',
    b'{"choices":[{"index":0,"text":"","finish_reason":"stop"}]}',
    b'{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2},"metrics":{"queue_time_ms":1.5}}',
    b'{"choices":[],"usage":{"completion_tokens":' + b"9" * 30 + b"}}",
    b'{"error":{"message":"m"}}',
    b'{"object":"error","message":"m"}',
    b"[DONE]",
)
_FRAMINGS: tuple[Framing, ...] = ("chunked", "length", "close")
_PLANNED = PlannedRequest(
    index=0, offset_s=0.0, request_id="r", path="/v1/completions", body=b"{}", prompt_digest="d", max_tokens=8
)


def answer_of(rng: random.Random) -> Answer:
    """One answer and what the parser makes of it."""
    good = rng.random() < 0.4
    body = _good(rng) if good else b"".join(_part(rng) for _ in range(rng.randrange(1, 30)))
    if rng.random() < 0.4:
        body = _damaged(rng, body)
    framing = rng.choice(_FRAMINGS)
    wire = _chunked(rng, body) if framing == "chunked" else body
    if framing == "chunked" and rng.random() < 0.3:
        wire = _damaged(rng, wire)
    raw = RawStream("key", 0, t_send_ns=0)
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.randrange(0, 6)))
    for number, (start, end) in enumerate(zip([0, *cuts], [*cuts, len(wire)], strict=True)):
        raw.reads += (wire[start:end], None, number * 1_000_000)
    status = rng.choice((200, 200, 200, 200, 400, 429, 500, 503))
    kind = rng.choice(("text/event-stream", "text/event-stream", "application/json", "text/html", ""))
    raw.head = ResponseHead(status, framing, len(body), True, kind)
    raw.complete = rng.random() < 0.7
    raw.t_end_ns = len(cuts) * 1_000_000 + 5
    if not raw.complete:
        raw.status, raw.cause, raw.error = rng.choice(
            (("failed", "reset", "gone"), ("timeout", "timeout", "late"), ("censored", "cut", "cut"))
        )
    return parse_answer(raw, rng.choice((None, 1, 8)))


def _good(rng: random.Random) -> bytes:
    """An answer that is as it should be, before it is damaged."""
    texts = [rng.choice(_EVENTS[1:4]) for _ in range(rng.randrange(1, 20))]
    return b"".join(b"data: " + event + b"\n\n" for event in (_EVENTS[0], *texts, *_EVENTS[5:7], _EVENTS[-1]))


def _part(rng: random.Random) -> bytes:
    if rng.random() < 0.7:
        return b"data: " + rng.choice(_EVENTS) + rng.choice((b"\n\n", b"\n\n", b"\n\n", b"\n", b"\r\n\r\n", b""))
    return rng.choice(_PIECES)


def _damaged(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, doubled or taken out."""
    found = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        if not found:
            break
        place = rng.randrange(len(found))
        what = rng.random()
        if what < 0.5:
            found[place] = rng.randrange(256)
        elif what < 0.75:
            del found[place : place + rng.randrange(1, 9)]
        else:
            found[place:place] = found[max(0, place - rng.randrange(1, 40)) : place]
    return bytes(found)


def _chunked(rng: random.Random, body: bytes) -> bytes:
    parts, place = [], 0
    while place < len(body):
        size = rng.randrange(1, 400)
        piece = body[place : place + size]
        parts.append(b"%x\r\n%b\r\n" % (len(piece), piece))
        place += size
    return b"".join(parts) + (b"0\r\n\r\n" if rng.random() < 0.9 else b"")


def run(count: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Try so many answers.

    Returns:
        how many ended how, and for each that raised its number and the error.
    """
    outcomes: Counter[str] = Counter()
    raised: list[str] = []
    for number in range(count):
        try:
            answer = answer_of(random.Random(f"{seed}:{number}"))
            record = build_record(_PLANNED, answer, due_ns=0, zero_ns=0)
            if msgspec.json.decode(msgspec.json.encode(record), type=type(record)) != record:
                raise ValueError("the record is not read as it was written")
        except Exception as error:
            raised.append(f"answer {number} of seed {seed}: {type(error).__name__}: {error}")
            outcomes["raised"] += 1
        else:
            outcomes[answer.status if answer.cause is None else f"{answer.status}: {answer.cause}"] += 1
    return outcomes, raised


def main() -> int:
    """Try the answers and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=30_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-folders", action="store_true", help="answers alone")
    options = parser.parse_args()
    started = time.monotonic()
    outcomes, raised = run(options.count, options.seed)
    for name, number in outcomes.most_common():
        print(f"{number:8,}  {name}")
    print(f"{options.count:8,}  answers in {time.monotonic() - started:.0f} s, {len(raised)} raised")
    print("\n".join(raised[:20]), end="\n" if raised else "")
    wrong = [] if options.no_folders else _folders()
    return ExitStatus.FAULT if raised or wrong else ExitStatus.OK


def _folders() -> list[str]:
    """Try every damage to a run folder, and print how many commands ended how; those that raised."""
    from kvload.scripts import damage

    statuses: Counter[int] = Counter()
    wrong = []
    with tempfile.TemporaryDirectory(prefix="kvload-damage-") as folder:
        for name, command, status, said in damage.outcomes(Path(folder)):
            statuses[status] += 1
            if damage.wrong(status, said):
                wrong.append(f"{name}: kvload {command} ended with {status}: {said.strip()[-300:]}")
    told = ", ".join(f"{number:,} with {status}" for status, number in sorted(statuses.items()))
    print(f"{len(damage.kinds()):8,}  kinds of damage to a run folder; commands ended {told}; {len(wrong)} raised")
    print("\n".join(wrong), end="\n" if wrong else "")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
