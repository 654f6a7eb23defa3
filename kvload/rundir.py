"""One run is one folder, complete in itself.

::

    RUN/manifest.json            RunManifest
    RUN/records/SHARD.jsonl      one RequestRecord a line, appended as requests end
    RUN/records/SHARD.chunks     chunk rows of the same shard, :data:`CHUNK_DTYPE`, appended before the record
    RUN/scrapes.jsonl            one ServerSample a line
    RUN/server.log               the part of the server's log that belongs to the run; server-1.log ... of its replicas
    RUN/report.json ...          whatever was rendered from the above

Every worker writes its own shard, so that a worker that dies takes nothing of the others along; a record that was cut
short by a crash is the last line of its shard and is counted, not silently skipped. The shard ``unaccounted`` holds
what the end of the run had to say of requests without a record; should one of them come after all, that one counts.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import msgspec
import numpy as np
import numpy.typing as npt

from kvload.errors import MachineError, RunDirError
from kvload.private import make_folder, open_file, write_bytes
from kvload.records import RequestRecord, RunManifest, ServerSample, decode_manifest
from kvload.untrusted import DECODE_ERRORS

CHUNK_DTYPE = np.dtype([("us", "<u4"), ("tokens", "<u2")])
"""One token-carrying chunk: microseconds since the request's ``t_send_s``, and the tokens in it."""


UNACCOUNTED = "unaccounted"
"""The shard of the requests that nobody had recorded when the run was completed."""

_RESERVE_NAME = "reserve"


@dataclass(frozen=True)
class Shard:
    """One worker's two files inside a run folder."""

    name: str
    records_path: Path
    chunks_path: Path

    def chunks(self) -> npt.NDArray[np.void]:
        """All chunk rows of the shard, mapped from disk read-only (empty where no chunk came)."""
        rows = self.chunks_path.stat().st_size // CHUNK_DTYPE.itemsize if self.chunks_path.exists() else 0
        if rows == 0:
            return np.empty(0, CHUNK_DTYPE)
        return np.memmap(self.chunks_path, dtype=CHUNK_DTYPE, mode="r", shape=(rows,))


class RecordWriter:
    """Appends records and their chunks to one shard; every record is on disk when :meth:`append` returns to the OS.

    A record that cannot be written whole is not there at all: what was written of it is taken back.
    """

    def __init__(self, shard: Shard) -> None:
        make_folder(shard.records_path.parent)
        self._records: IO[bytes] = open_file(shard.records_path, "ab", buffering=0)
        self._chunks: IO[bytes] = open_file(shard.chunks_path, "ab", buffering=0)
        self._chunk_rows = self._chunks.tell() // CHUNK_DTYPE.itemsize
        self._encoder = msgspec.json.Encoder()

    def append(self, record: RequestRecord, chunks: npt.NDArray[np.void]) -> RequestRecord:
        """Write one record with its chunk rows (``CHUNK_DTYPE``) and return it with its place in the chunk file.

        Raises:
            OSError: it could not be written, for example since the disk is full.
        """
        placed = msgspec.structs.replace(record, chunk_offset=self._chunk_rows, chunk_count=len(chunks))
        line = self._encoder.encode(placed) + b"\n"
        if len(chunks):
            _write_whole(self._chunks, chunks.astype(CHUNK_DTYPE, copy=False).tobytes())
        try:
            _write_whole(self._records, line)
        except OSError:
            self._chunks.truncate(self._chunk_rows * CHUNK_DTYPE.itemsize)
            raise
        self._chunk_rows += len(chunks)
        return placed

    def close(self) -> None:
        """Close both files; further appends fail."""
        self._records.close()
        self._chunks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise RunDirError("cannot be read: it is not a file", where=str(path))


def _write_whole(file: IO[bytes], data: bytes) -> None:
    """Append all of it or nothing: a full disk takes a part before it refuses."""
    start = file.seek(0, os.SEEK_END)
    view = memoryview(data)
    try:
        while view:
            view = view[file.write(view) :]
    except OSError:
        file.truncate(start)
        raise


class RunDir:
    """A run folder, opened for reading or still being written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, manifest: RunManifest) -> Self:
        """Make a new run folder.

        Raises:
            RunDirError: the folder exists and is not empty.
            MachineError: it cannot be written.
        """
        run = cls(path)
        try:
            make_folder(path)
            if any(path.iterdir()):
                raise RunDirError("the run folder is not empty", where=str(path), hint="choose another --out")
            make_folder(run.records_dir)
            run.write_manifest(manifest)
        except OSError as error:
            raise MachineError(f"cannot write the run folder: {error.strerror}", where=str(path)) from error
        return run

    def reserve(self, size: int) -> None:
        """Keep so many bytes of the disk for the end of the run, which must be written down even on a full one.

        Raises:
            MachineError: there is not so much room.
        """
        try:
            with open_file(self.path / _RESERVE_NAME, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise MachineError(
                f"no room for the run: {error.strerror}",
                where=str(self.path),
                hint="free some, or choose another --out",
            ) from error

    def release(self) -> None:
        """Give back what :meth:`reserve` kept."""
        (self.path / _RESERVE_NAME).unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing run folder.

        Raises:
            RunDirError: there is no readable manifest in it.
        """
        run = cls(path)
        if not run.manifest_path.is_file():
            raise RunDirError("not a run folder: it has no manifest.json", where=str(path))
        run.manifest()
        return run

    @property
    def manifest_path(self) -> Path:
        return self.path / "manifest.json"

    @property
    def records_dir(self) -> Path:
        return self.path / "records"

    @property
    def scrapes_path(self) -> Path:
        return self.path / "scrapes.jsonl"

    def server_log_path(self, server: int = 0) -> Path:
        """What a server logged during the run.

        Args:
            server: its position in :attr:`RunManifest.servers`.
        """
        return self.path / ("server.log" if server == 0 else f"server-{server}.log")

    def manifest(self) -> RunManifest:
        """Read the manifest.

        Raises:
            RunDirError: it is missing or does not parse.
        """
        try:
            return decode_manifest(self.manifest_path.read_bytes())
        except OSError as error:
            raise RunDirError(f"cannot read the manifest: {error.strerror}", where=str(self.manifest_path)) from error
        except DECODE_ERRORS as error:
            raise RunDirError(f"the manifest does not parse: {error}", where=str(self.manifest_path)) from error

    def write_manifest(self, manifest: RunManifest) -> None:
        """Replace the manifest in one step, so that a reader never sees half of it."""
        temporary = self.manifest_path.with_suffix(".tmp")
        write_bytes(temporary, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
        temporary.replace(self.manifest_path)

    def update_manifest(self, **changes: Any) -> RunManifest:
        """Replace fields of the manifest on disk and return the new one."""
        manifest = msgspec.structs.replace(self.manifest(), **changes)
        self.write_manifest(manifest)
        return manifest

    def shard(self, name: str) -> Shard:
        """The shard of that name, whether or not it has been written yet."""
        return Shard(name, self.records_dir / f"{name}.jsonl", self.records_dir / f"{name}.chunks")

    def shards(self) -> list[Shard]:
        """All shards on disk, by name.

        Raises:
            RunDirError: a name of theirs does not lead to a file.
        """
        found = [self.shard(path.stem) for path in sorted(self.records_dir.glob("*.jsonl"))]
        for shard in found:
            _check_file(shard.records_path)
            if os.path.lexists(shard.chunks_path):
                _check_file(shard.chunks_path)
        return found

    def writer(self, shard_name: str) -> RecordWriter:
        """A writer that appends to the shard of that name."""
        return RecordWriter(self.shard(shard_name))

    def records(self) -> Iterator[tuple[RequestRecord, npt.NDArray[np.void]]]:
        """All records with their chunk rows, shard by shard, in the order they ended.

        Raises:
            RunDirError: a line other than a shard's torn last one does not parse.
        """
        decoder = msgspec.json.Decoder(RequestRecord)
        seen: set[int] = set()
        shards = self.shards()
        is_doubled = len(shards) > 1 and any(shard.name == UNACCOUNTED for shard in shards)
        for shard in sorted(shards, key=lambda shard: shard.name == UNACCOUNTED):
            chunks = shard.chunks()
            with shard.records_path.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if not line.endswith(b"\n"):
                        break
                    try:
                        record = decoder.decode(line)
                    except DECODE_ERRORS as error:
                        raise RunDirError(str(error), where=f"{shard.records_path}:{number}") from error
                    if is_doubled:
                        if shard.name == UNACCOUNTED and record.index in seen:
                            continue
                        seen.add(record.index)
                    yield record, chunks[record.chunk_offset : record.chunk_offset + record.chunk_count]

    def torn_records(self) -> int:
        """How many shards end in a record that a crash cut short."""
        torn = 0
        for shard in self.shards():
            # an empty file has no last byte to seek to
            with shard.records_path.open("rb") as lines, contextlib.suppress(OSError):
                lines.seek(-1, os.SEEK_END)
                torn += lines.read(1) != b"\n"
        return torn

    def append_scrape(self, sample: ServerSample) -> None:
        """Append one scrape of the server's metrics."""
        with open_file(self.scrapes_path, "ab") as file:
            file.write(msgspec.json.encode(sample) + b"\n")

    def scrapes(self, server: int | None = None) -> list[ServerSample]:
        """All scrapes in order; a torn last line is left out.

        Args:
            server: of one of the run's servers alone; of all together where None: those of one time are one sample, of
                what all servers have and do.

        Raises:
            RunDirError: another line does not parse.
        """
        if not os.path.lexists(self.scrapes_path):
            return []
        _check_file(self.scrapes_path)
        decoder = msgspec.json.Decoder(ServerSample)
        samples = []
        with self.scrapes_path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.endswith(b"\n"):
                    break
                try:
                    samples.append(decoder.decode(line))
                except DECODE_ERRORS as error:
                    raise RunDirError(str(error), where=f"{self.scrapes_path}:{number}") from error
        if server is not None:
            return [sample for sample in samples if sample.server == server]
        return _together(samples)


def _together(samples: list[ServerSample]) -> list[ServerSample]:
    """Samples of several servers as those of one: the n-th of each server are of one time.

    Everything adds up but ``cache_usage``, whose mean counts; a figure that one of them lacks is missing, and so are
    all where one of them could not be read.
    """
    by_server: dict[int, list[ServerSample]] = {}
    for sample in samples:
        by_server.setdefault(sample.server, []).append(sample)
    if len(by_server) < 2:
        return samples
    found = []
    for row in zip(*by_server.values(), strict=False):
        values: dict[str, float] = {}
        for name in ServerSample.__struct_fields__:
            if name in {"t_s", "server", "error"}:
                continue
            parts = [value for sample in row if (value := getattr(sample, name)) is not None]
            if len(parts) == len(row):
                values[name] = sum(parts) / (len(row) if name == "cache_usage" else 1)
        error = next((sample.error for sample in row if sample.error is not None), None)
        plain = {"t_s": row[0].t_s, **({"error": error} if error is not None else values)}
        found.append(msgspec.convert(plain, ServerSample))
    return found
