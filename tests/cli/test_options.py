"""Options that several commands share: declared once, and the same in each of them."""

import importlib
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar

import pytest
import typer
import typer.main
from typer.testing import CliRunner

from kvload.cli import options, readings
from kvload.errors import UsageError


def flags_of(command: str) -> dict[str, Any]:
    """Every flag of a command with its option."""
    found = typer.main.get_command(importlib.import_module(f"kvload.cli.{command}").app)
    return {flag: parameter for parameter in found.params for flag in parameter.opts if flag.startswith("--")}


SHARED = (
    options.TraceFlags,
    options.RequestFlags,
    options.SendingFlags,
    options.LimitFlags,
    options.PageFlags,
)


def test_replay_compare_and_capacity_have_the_same_options() -> None:
    replay, compare, capacity = (flags_of(name) for name in ("replay", "compare", "capacity"))
    shared = {flag for flag in replay if flag in compare and flag in capacity}
    assert len(shared) >= sum(len(fields(group)) for group in SHARED)
    # a server is asked for its limit, or launched with it; a search waits as long as a request may take
    for flag in shared - {"--out", "--model", "--max-model-len", "--drain"}:
        assert replay[flag].help == compare[flag].help == capacity[flag].help
    arrivals = {
        "--ramp",
        "--speed",
        "--rate",
        "--request-rate",
        "--arrivals",
        "--burstiness",
        "--jitter",
        "--concurrency",
    }
    assert arrivals <= set(replay) & set(compare)
    wanted = {
        "--sample",
        "--sort",
        "--temperature",
        "--top-p",
        "--drain",
        "--insecure",
        "--keep-cache",
        "--web",
        "--goodput",
    }
    assert wanted <= shared


@dataclass(frozen=True, kw_only=True)
class Group:
    heading: ClassVar[str] = "Some"

    first: Annotated[int, typer.Option(help="A number.")] = 1
    words: Annotated[list[str] | None, typer.Option("--word")] = None


def test_a_group_is_one_option_a_field_and_arrives_as_one_value() -> None:
    app = typer.Typer()
    seen: list[Any] = []

    @app.command()
    @options.grouped
    def command(place: str, group: Group = Group(), last: bool = False) -> None:
        seen.append((place, group, last))

    done = CliRunner().invoke(app, ["here", "--first", "3", "--word", "a", "--word", "b", "--last"])
    assert done.exit_code == 0, done.output
    assert seen == [("here", Group(first=3, words=["a", "b"]), True)]


def test_limits_come_from_one_flag_in_either_spelling() -> None:
    vllm = options.LimitFlags(goodput="ttft:200")
    assert readings.trace_and_limits(["tpot:50", "trace.jsonl"], vllm) == (["trace.jsonl"], {"ttft": 0.2, "tpot": 0.05})
    ours = options.LimitFlags(slo="ttft=200ms")
    assert readings.trace_and_limits(["trace.jsonl"], ours) == (["trace.jsonl"], {"ttft": 0.2})
    with pytest.raises(UsageError, match="give one of them"):
        readings.trace_and_limits(["tpot:50"], ours)
    with pytest.raises(UsageError, match="no unit"):
        readings.trace_and_limits([], options.LimitFlags(slo="ttft=500"))


def test_a_header_is_not_repeated_in_a_complaint() -> None:
    assert readings.read_headers(options.SendingFlags(header=["A: b", "C:d"])) == {"A": "b", "C": "d"}
    with pytest.raises(UsageError) as caught:
        readings.read_headers(options.SendingFlags(header=["secret"]))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("text", ["5", "9-5", "a-b", "-5", "0-99999999999", "²-³"])
def test_what_is_no_range_of_token_ids(text: str) -> None:
    with pytest.raises(UsageError, match="not a range"):
        readings.read_schedule(options.TraceFlags(), options.RequestFlags(token_range=text), None)  # type: ignore[arg-type]
