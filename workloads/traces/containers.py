"""Opens a trace file whatever it is packed with, and names what kvload does not read."""

import bz2
import gzip
import importlib
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, cast

from kvload.errors import TraceError

BOM = b"\xef\xbb\xbf"
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a packed file may raise."""

_HEAD_BYTES = 512
_UNPACKED_BYTES = 1 << 18

_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_ZSTD = b"\x28\xb5\x2f\xfd"
_TAR_MARK, _TAR_AT = b"ustar", 257

_FOREIGN = (
    (b"PK\x03\x04", "a zip archive", "unpack it first: unzip FILE"),
    (b"\x04\x22\x4d\x18", "an lz4 file", "unpack it first: lz4 -d FILE"),
    (b"PAR1", "a Parquet file", "write it as JSON lines first: duckdb -c \"COPY 'FILE' TO 'trace.jsonl'\""),
    (b"ARROW1", "an Arrow file", "write it as JSON lines first"),
    (b"SQLite format 3", "an SQLite database", "write the table as JSON lines or CSV first"),
    (b"\x7fELF", "a program", None),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "fetch it: git lfs pull"),
    (b"<!doctype", "an HTML page, not a trace", "download the raw file"),
    (b"<html", "an HTML page, not a trace", "download the raw file"),
)
_UTF16 = "iconv -f UTF-16 -t UTF-8 FILE > trace"


@contextmanager
def open_trace(path: Path) -> Iterator[BufferedReader]:
    """Open a trace file for reading bytes; gzip, bzip2, xz and zstd are unpacked on the way, whatever its name.

    Raises:
        TraceError: it cannot be opened, or is known to be something else than lines of text.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise TraceError(f"cannot be opened: {error.strerror}", where=str(path)) from error
    with file:
        raw = _unpacked(file, path)
        with BufferedReader(cast(Any, raw), _UNPACKED_BYTES) if raw is not file else file as text:
            _refuse_foreign(text, path)
            yield text


def _unpacked(file: BufferedReader, path: Path) -> Any:
    try:
        head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    except OSError as error:
        raise TraceError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=file)
    if head.startswith(_BZIP2):
        return bz2.BZ2File(file)
    if head.startswith(_XZ):
        return lzma.LZMAFile(file)
    if head.startswith(_ZSTD):
        return _ZstdFile(file)
    return file


def _refuse_foreign(file: BufferedReader, path: Path) -> None:
    try:
        head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    except UNREADABLE:
        return  # told by whoever reads on, with its place
    for magic, what, hint in _FOREIGN:
        if head.lower().startswith(magic.lower()):
            raise TraceError(f"the file is {what}", where=str(path), hint=hint)
    if head[_TAR_AT:].startswith(_TAR_MARK):
        raise TraceError("the file is a tar archive", where=str(path), hint="unpack it first: tar -xf FILE")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head[:8].count(0) >= 3:
        raise TraceError(
            "the file is UTF-16 (or UTF-32) text, not UTF-8", where=str(path), hint=f"convert it: {_UTF16}"
        )


class _ZstdFile(io.RawIOBase):
    """The unpacked bytes of a zstd file of any number of frames; a file that ends within one is an EOFError."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._zstd: Any = importlib.import_module("zstandard")
        self._file = file
        self._frame: Any = None
        self._packed = b""
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._plain:
            if not self._packed:
                self._packed = self._file.read(1 << 16)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the zstd file ended before its last frame did")
                return 0
            self._plain = self._unpack()
        count = min(len(target), len(self._plain))
        target[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _unpack(self) -> bytes:
        if self._frame is None:
            self._frame = self._zstd.ZstdDecompressor().decompressobj()
        try:
            plain: bytes = self._frame.decompress(self._packed)
        except self._zstd.ZstdError as error:
            raise OSError(str(error)) from error
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return plain
