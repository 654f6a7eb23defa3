"""The catalogue of methods: reading specifications, and rows that hold together."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvload.cli import main as command_line
from kvload.errors import UsageError
from kvload.servers.catalogue.asked import parse_method, split_spec
from kvload.servers.catalogue.claims import Stored
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.embedded.compression import build_method
from kvload.servers.engines.offers import listed

BYTES_AT_128 = {
    ("none", 512): 512,
    ("fp8-e4m3", 8192): 264,
    ("int8", 8192): 264,
    ("int4", 8192): 136,
    ("kivi-4", 512): 204,
    ("kivi-4", 2048): 171,
    ("kivi-4", 8192): 163,
    ("kivi-2", 512): 148,
    ("kivi-2", 2048): 109,
    ("kivi-2", 8192): 99,
}
"""Published bytes per token, layer and KV head at head size 128 in 16-bit precision."""


@pytest.mark.parametrize(("name", "tokens"), BYTES_AT_128)
def test_claims_are_the_published_ones(name: str, tokens: int) -> None:
    options = parse_method(name).options
    assert round(METHODS[name].claim(Stored(tokens, 128, 2, options))) == BYTES_AT_128[name, tokens]


@pytest.mark.parametrize("name", METHODS)
def test_rows_hold_together(name: str) -> None:
    """Named as keyed, explained in about ten lines that fit a terminal; the implementation takes the options."""
    row = METHODS[name]
    assert row.name == name
    lines = row.explanation.strip().splitlines()
    assert 4 <= len(lines) <= 12
    assert max(map(len, lines)) <= 100
    spec = parse_method(name)
    assert spec.options == {option.name: option.default for option in row.options}
    build_method(spec)
    assert 0 < row.claim(Stored(8192, 128, 2, spec.options)) <= 512


def test_defaults_are_filled_in() -> None:
    spec = parse_method("kivi-2:residual=64")
    assert dict(spec.options) == {"group": 32, "residual": 64}
    assert str(spec) == "kivi-2:group=32,residual=64"
    assert parse_method(str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nope", "known: none,"),
        ("none:bits=4", "has no option 'bits'"),
        ("h2o:budgett=512", "its options: budget, recent"),
        ("h2o:budget", "is not option=value"),
        ("h2o:budget=1,budget=2", "given twice"),
        ("h2o:budget=1.5", "a whole number"),
        ("h2o:budget=0", "from 2"),
        ("h2o:budget=64,recent=64", "must be smaller than budget"),
        ("snapkv:kernel=4", "must be odd"),
        ("kivi-4:residual=100", "multiple of group"),
        ("gear-4:block=96", "multiple of group"),
        ("gear-4:outliers=0.9", "to 0.5"),
        ("leankv:low=2,high=1", "must not exceed"),
        ("int4:rotate=2", "from 0 to 1"),
    ],
)
def test_wrong_specifications_are_explained(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_method(text)
    assert says in str(caught.value)
    assert text in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        spec = parse_method(text)
    except UsageError:
        return
    assert spec.name in METHODS
    assert split_spec(text)[0] == spec.name


def test_a_numeric_option_refuses_not_a_number() -> None:
    for text in ("leankv:low=nan", "leankv:high=inf", "gear-4:outliers=nan"):
        with pytest.raises(UsageError):
            parse_method(text)


def test_list_names_every_method_and_engine(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["methods"]) == 0
    out = capsys.readouterr().out
    for row in listed():
        assert row.name in out
    assert "turboquant-4bit" in out
    assert "embedded, vllm, sglang" in out


def test_json_carries_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["methods", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["kivi-4"]["options"] == {"group": 32, "residual": 128}
    assert [offer["engine"] for offer in rows["fp8-e4m3"]["offers"]] == ["embedded", "vllm", "sglang"]
    assert rows["turboquant-4bit"]["title"] is None


@pytest.mark.parametrize("name", [row.name for row in listed()])
def test_every_method_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["methods", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(name)
    assert "bytes per token" in out


def test_unknown_method_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.run(["methods", "kivi4"]) == 2
    assert "did you mean 'kivi-4'?" in capsys.readouterr().err
