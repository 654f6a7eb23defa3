"""Memory of reading, describing and converting does not grow with the file."""

import tracemalloc
from pathlib import Path

import pytest

from kvload.workloads.bench.traces import measure, write_azure
from kvload.workloads.traces.convert import Conversion, ConversionCounts, convert
from kvload.workloads.traces.describe import describe
from kvload.workloads.traces.formats import detect_format, read_trace


def peak_bytes(path: Path) -> int:
    tracemalloc.start()
    try:
        describe(convert(read_trace(path), Conversion(cap_input=8000), ConversionCounts()))
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("azure")
    for name, rows in (("small", 2_000), ("large", 20_000)):
        write_azure(folder / name, rows)
    return folder / "small", folder / "large"


def test_ten_times_the_rows_need_no_more_memory(files: tuple[Path, Path]) -> None:
    small, large = files
    peak_bytes(small)  # imports and caches
    # buffers of the length counters fill up to half a megabyte each
    assert peak_bytes(large) < peak_bytes(small) + 2_000_000


def test_the_benchmark_measures_a_real_file(files: tuple[Path, Path]) -> None:
    assert detect_format(files[0]) == "azure"
    rows, peak_mib, _, row_us = measure(files[0]).replace(",", "").split()
    assert rows == "2000"
    assert float(peak_mib) > 1
    assert float(row_us) > 0
