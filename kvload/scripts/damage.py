"""Damaged run folders through ``kvload report`` and ``kvload compare``: the part of ``make fuzz`` about files.

A folder can be damaged by a full disk, a copy that broke off, an editor, another program, or somebody who means harm.
Whatever was done to it, a command says so in a sentence or reports what is left: it ends with 0, 2 or 4 and never with
a traceback.
"""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kvload.cli.main import run as run_command
from kvload.errors import ExitStatus
from kvload.records import RequestRecord, RunManifest, ServerInfo, ServerSample, TraceInfo
from kvload.rundir import CHUNK_DTYPE, RunDir

REQUESTS = 30
FINE = frozenset({int(ExitStatus.OK), int(ExitStatus.USAGE), int(ExitStatus.MACHINE)})
_DEEP = "[" * 100_000 + "]" * 100_000
_FILES = {
    "manifest": "manifest.json",
    "records": "records/worker-0.jsonl",
    "chunks": "records/worker-0.chunks",
    "scrapes": "scrapes.jsonl",
}


def good_folder(path: Path) -> Path:
    """A run as it should be: answers, a failure, scrapes."""
    manifest = RunManifest(
        run_id="good",
        kvload_version="0",
        servers=[ServerInfo(url="http://127.0.0.1:1", engine="mock", model="m", method="none")],
        trace=TraceInfo(path="t.jsonl", sha256="0" * 64, format="kvload", rows=REQUESTS, used=REQUESTS),
        mode="free",
        seed=0,
        arrivals={"kind": "trace"},
        planned=REQUESTS,
        slo={"ttft": 0.5, "tpot": 0.05},
        started_at=1.7e9,
        duration_s=4.0,
        sent=REQUESTS,
        unsent=0,
        partial=False,
        ended="completed",
    )
    run = RunDir.create(path, manifest)
    with run.writer("worker-0") as writer:
        for index in range(REQUESTS):
            writer.append(*_request(index))
    for second in range(4):
        run.append_scrape(ServerSample(t_s=float(second), running=2.0, waiting=0.0, cache_usage=0.5))
    return path


def _request(index: int) -> tuple[RequestRecord, Any]:
    sent, tokens = index * 0.1, 5 + index % 7
    rows = np.empty(tokens, CHUNK_DTYPE)
    rows["us"], rows["tokens"] = 100_000 + 20_000 * np.arange(tokens), 1
    common: dict[str, Any] = {
        "index": index,
        "request_id": f"r{index}",
        "prompt_digest": f"{index:032x}",
        "max_tokens": 64,
        "t_sched_s": sent,
        "t_send_s": sent,
        "input_tokens": 10,
    }
    if index == 3:
        return RequestRecord(**common, status="failed", cause="reset", t_end_s=sent + 0.1), rows[:0]
    first, last = sent + 0.1, sent + 0.1 + 0.02 * (tokens - 1)
    record = RequestRecord(
        **common,
        status="ok",
        t_first_s=first,
        t_last_s=last,
        t_end_s=last,
        output_tokens=tokens,
        output_tokens_source="usage",
        first_chunk_tokens=1,
        finish_reason="stop",
        text="word " * tokens,
    )
    return record, rows


Damage = Callable[[Path], None]


def _bytes(file: str, change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / _FILES[file]
        path.write_bytes(change(path.read_bytes()))

    return damage


def _line(file: str, number: int, line: str) -> Damage:
    """One line of a file replaced."""

    def change(content: bytes) -> bytes:
        lines = content.splitlines(keepends=True)
        lines[number] = line.encode() + b"\n"
        return b"".join(lines)

    return _bytes(file, change)


def _field(file: str, name: str, value: str) -> Damage:
    """A field of the manifest, or of the second line of the others, replaced by some JSON."""

    def change(content: bytes) -> bytes:
        lines = [content] if file == "manifest" else content.splitlines(keepends=True)
        place = 0 if file == "manifest" else 1
        kept = json.loads(lines[place])
        kept[name] = "@@"
        lines[place] = json.dumps(kept).replace('"@@"', value).encode() + b"\n"
        return b"".join(lines)

    return _bytes(file, change)


def _gone(file: str) -> Damage:
    return lambda folder: (folder / _FILES[file]).unlink()


def _a_folder(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / _FILES[file]).unlink()
        (folder / _FILES[file]).mkdir()

    return damage


def _a_link_to_nothing(file: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / _FILES[file]).unlink()
        (folder / _FILES[file]).symlink_to(folder / "nothing")

    return damage


def _other_shard(folder: Path) -> None:
    shutil.copy(folder / _FILES["records"], folder / "records" / "worker-1.jsonl")
    shutil.copy(folder / _FILES["chunks"], folder / "records" / "worker-1.chunks")


def _no_records_folder(folder: Path) -> None:
    shutil.rmtree(folder / "records")


def _records_folder_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder / "records")
    (folder / "records").write_text("x", encoding="utf-8")


def kinds() -> dict[str, Damage]:
    """Every way to damage a run folder, by name."""
    found: dict[str, Damage] = {
        "records: a shard twice": _other_shard,
        "records: the folder is gone": _no_records_folder,
        "records: the folder is a file": _records_folder_is_a_file,
        "records: every line twice": _bytes("records", lambda content: content + content),
        "chunks: one row short": _bytes("chunks", lambda content: content[: -CHUNK_DTYPE.itemsize]),
        "chunks: half a row more": _bytes("chunks", lambda content: content + b"\x01\x02"),
        "chunks: times run backwards": _bytes("chunks", lambda content: content[::-1]),
        "manifest: a list": _bytes("manifest", lambda _: b"[]"),
        "manifest: null": _bytes("manifest", lambda _: b"null"),
        "manifest: an empty object": _bytes("manifest", lambda _: b"{}"),
    }
    for file in _FILES:
        found |= {
            f"{file}: gone": _gone(file),
            f"{file}: empty": _bytes(file, lambda _: b""),
            f"{file}: half of it": _bytes(file, lambda content: content[: len(content) // 2]),
            f"{file}: NUL bytes": _bytes(file, lambda content: bytes(len(content))),
            f"{file}: noise": _bytes(file, lambda content: random.Random(1).randbytes(len(content))),
            f"{file}: a folder": _a_folder(file),
            f"{file}: a link to nothing": _a_link_to_nothing(file),
        }
    for file in ("records", "scrapes"):
        found |= {
            f"{file}: 100,000 deep": _line(file, 1, _DEEP),
            f"{file}: no JSON": _line(file, 1, "{nonsense"),
            f"{file}: an empty line": _line(file, 1, ""),
            f"{file}: no UTF-8": _bytes(file, lambda content: content.replace(b"e", b"\xff", 3)),
        }
    found["manifest: 100,000 deep"] = _field("manifest", "arrivals", _DEEP)
    found["manifest: no UTF-8"] = _bytes("manifest", lambda content: content.replace(b"good", b"\xff\xfe"))
    huge, far, odd = "1" + "0" * 30, "1e300", ("null", '"x"', "-1", "[]", "1e999")
    for name in ("index", "chunk_offset", "chunk_count", "output_tokens", "first_chunk_tokens", "max_tokens", "server"):
        found[f"records: {name} is huge"] = _field("records", name, huge)
        found[f"records: {name} is -10"] = _field("records", name, "-10")
    for name in ("t_sched_s", "t_send_s", "t_first_s", "t_last_s", "t_end_s"):
        found[f"records: {name} is 1e300"] = _field("records", name, far)
        found[f"records: {name} is null"] = _field("records", name, "null")
        found[f"records: {name} goes backwards"] = _field("records", name, "-5.0")
    for value in odd:
        found[f"records: status is {value}"] = _field("records", "status", value)
        found[f"records: text is {value}"] = _field("records", "text", value)
        found[f"records: chunk_tick_us is {value}"] = _field("records", "chunk_tick_us", value)
        found[f"scrapes: t_s is {value}"] = _field("scrapes", "t_s", value)
        found[f"scrapes: cache_usage is {value}"] = _field("scrapes", "cache_usage", value)
        for name in ("planned", "slo", "seed", "mode", "servers", "trace", "duration_s", "started_at", "client"):
            found[f"manifest: {name} is {value}"] = _field("manifest", name, value)
    found |= {
        "manifest: started_at is 1e300": _field("manifest", "started_at", far),
        "manifest: started_at is -1e12": _field("manifest", "started_at", "-1e12"),
        "manifest: duration_s is 1e300": _field("manifest", "duration_s", far),
        "manifest: duration_s is 0": _field("manifest", "duration_s", "0"),
        "manifest: planned is huge": _field("manifest", "planned", huge),
        "manifest: seed is -1": _field("manifest", "seed", "-1"),
        "manifest: a limit of 0": _field("manifest", "slo", '{"ttft": 0}'),
        "manifest: a limit that is none": _field("manifest", "slo", '{"weight": 5}'),
        "manifest: a limit of 1e300": _field("manifest", "slo", '{"ttft": 1e300}'),
        "manifest: no servers": _field("manifest", "servers", "[]"),
        "manifest: odd client": _field("manifest", "client", '{"cpu_share": "x", "workers": []}'),
        "manifest: odd calibration": _field("manifest", "calibration", '{"ttft_error_p99_s": "x", "limit": 3}'),
        "manifest: odd arrivals": _field("manifest", "arrivals", '{"concurrency": "x"}'),
        "scrapes: t_s is 1e300": _field("scrapes", "t_s", far),
        "scrapes: running is -1e300": _field("scrapes", "running", "-1e300"),
    }
    return found


def outcomes(folder: Path) -> Iterator[tuple[str, str, int, str]]:
    """Damage a folder in every way and ask for reports of it.

    Args:
        folder: where the folders are made; it must be empty.

    Yields:
        the damage, the command, its exit status, and what it printed on standard error.
    """
    good = good_folder(folder / "good")
    for name, damage in kinds().items():
        odd = folder / "odd"
        shutil.copytree(good, odd)
        damage(odd)
        page = str(folder / "page.html")
        for command in (
            ["report", str(odd), "--json"],
            ["report", str(odd), "--html", page],
            ["compare", str(good), str(odd)],
            ["compare", str(odd), str(good), "--details"],
            ["export", str(odd), "--csv", str(folder / "rows.csv")],
        ):
            said = io.StringIO()
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                status = run_command(command)
            yield name, " ".join(word for word in command if not word.startswith("/")), status, said.getvalue()
        shutil.rmtree(odd)


def wrong(status: int, said: str) -> bool:
    """A command ended as none may."""
    return status not in FINE or "Traceback" in said
