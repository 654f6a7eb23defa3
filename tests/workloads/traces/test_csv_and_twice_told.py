"""CSV files as spreadsheets and other tools write them, and rows that say two things at once."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.errors import TraceError
from kvload.workloads.traces.csv_rows import csv_rows
from kvload.workloads.traces.formats import read_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n"
    "45,ChatGPT,1087,230,1317,Conversation log\n"
)


def read(path: Path, text: str) -> list[tuple[float | None, int | None, int | None]]:
    file = path / "trace"
    file.write_text(text, encoding="utf-8")
    return [(request.arrival, request.input_length, request.output_length) for request in read_trace(file)]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("text", [AZURE, BURST])
def test_other_separators_give_the_same_requests(tmp_path: Path, separator: str, text: str) -> None:
    other = text.replace(",", separator)
    assert read(tmp_path, other) == read(tmp_path, text)
    assert read(tmp_path, f"sep={separator}\n{other}") == read(tmp_path, text)


def test_fields_at_the_ends_may_be_empty(tmp_path: Path) -> None:
    empty = BURST.replace(",", "\t").replace("Conversation log", "")
    assert read(tmp_path, empty) == read(tmp_path, BURST)


def test_decimal_commas_are_read_where_they_cannot_be_thousands(tmp_path: Path) -> None:
    commas = BURST.replace(",", ";").replace("\n45;", "\n45,5;")
    assert read(tmp_path, commas)[1][0] == 40.5
    with pytest.raises(TraceError, match="'1,087', not a number of tokens"):
        read(tmp_path, commas.replace(";1087;", ";1,087;"))


def test_quoted_fields_may_go_over_lines(tmp_path: Path) -> None:
    assert read(tmp_path, BURST.replace("18,490,Conversation log", '18,490,"a\n\nlog, of ""two"" lines"')) == read(
        tmp_path, BURST
    )


@pytest.mark.parametrize("end", ["", '46,ChatGPT,1,1,2,"\n', '46,ChatGPT,1,1,2,x"\n', '46,ChatGPT,1,1,2,",x"\n'])
def test_no_row_is_lost_in_a_quote_that_stays_open(tmp_path: Path, end: str) -> None:
    opened = BURST.replace("18,490,Conversation log", '18,490,"Conversation log')
    with pytest.raises(TraceError, match="CSV row"):
        read(tmp_path, opened + end)


def test_a_column_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="'ContextTokens' more than once"):
        read(tmp_path, "TIMESTAMP,ContextTokens,GeneratedTokens,ContextTokens\n2023-11-16 18:15:46,1,2,3\n")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ('{"id": "a", "input_length": 10, "output_length": 5, "input_length": 2000}', "input_length"),
        ('{"id": "a", "messages": [{"role": "user", "content": "x", "content": "y"}]}', "content"),
        ('{"id": "a", "prompt": "x", "seed": 1, "se\\u0065d": 2}', None),
    ],
)
def test_a_field_with_two_values_is_refused(tmp_path: Path, row: str, name: str | None) -> None:
    if name is None:  # written in two ways: the last one counts, as every JSON decoder has it
        assert len(read(tmp_path, row)) == 1
        return
    with pytest.raises(TraceError, match=f"'{name}' stands twice"):
        read(tmp_path, row)


@pytest.mark.parametrize(
    "row",
    [
        '{"id": "a", "prompt": "x", "prompt": "x"}',
        '{"id": "a", "prompt": "he said \\"id\\": \\"b\\", \\"prompt\\": \\"y\\""}',
        '{"id": "prompt", "prompt": "id"}',
    ],
)
def test_what_says_the_same_twice_or_only_speaks_of_fields_is_read(tmp_path: Path, row: str) -> None:
    assert len(read(tmp_path, row)) == 1


def test_dates_and_numbers_from_zero_are_no_one_clock(tmp_path: Path) -> None:
    rows = '{{"id": "a", "arrival": {}, "prompt": "x"}}\n{{"id": "b", "arrival": {}, "prompt": "x"}}\n'
    with pytest.raises(TraceError, match="not on the same clock"):
        read(tmp_path, rows.format(0, '"2024-01-01T00:00:00Z"'))
    seen = read(tmp_path, rows.format(1704067200, '"2024-01-01T01:00:01+01:00"'))
    assert [arrival for arrival, _, _ in seen] == [0.0, 1.0]


LINES = st.text(st.sampled_from('ab1,;|\t"\n 3'), max_size=12)


@given(st.lists(st.tuples(LINES, LINES, LINES), min_size=1, max_size=6), st.sampled_from(",;\t|"))
def test_any_texts_come_back(rows: list[tuple[str, str, str]], separator: str) -> None:
    """Also lines that look like rows, and numbers that look like decimal commas."""
    file = io.StringIO()
    csv.writer(file, delimiter=separator, lineterminator="\n").writerows([("time", "prompt", "max_tokens"), *rows])
    assert list(csv_rows(file.getvalue().split("\n")[:-1], texts=True))[1:] == [list(row) for row in rows]


def test_a_prompt_may_hold_what_looks_like_rows_and_numbers() -> None:
    lines = ["time;prompt;max_tokens", '1,5;"3,14', "2;x;3", '";7']
    assert list(csv_rows(lines, texts=True))[1:] == [["1,5", "3,14\n2;x;3\n", "7"]]
    with pytest.raises(csv.Error, match="only closed rows later"):
        list(csv_rows(lines))
