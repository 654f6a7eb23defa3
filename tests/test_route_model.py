"""The router's file, which may come from anywhere."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvload.errors import UsageError
from kvload.prompt_features import END_CHARACTERS, FEATURES, Asked, buckets, ends, features
from kvload.route_model import Router, read, write
from kvload.scripts.bench_router import some_router


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "r.json", some_router())
    found = read(tmp_path / "r.json")
    assert found == some_router()
    row = features(Asked("how many?", "how many?"))
    assert 0 < found.of("compressed").value("negative", None, row) < 1
    with pytest.raises(UsageError, match="no router for 'x'"):
        found.of("x")


def changed(tmp_path: Path, change: dict[str, Any], inside: dict[str, Any] | None = None) -> Path:
    path = tmp_path / "r.json"
    write(path, some_router(trees=1))
    content = json.loads(path.read_text())
    content |= change
    if inside:
        content["routers"][0]["event"]["trees"][0] |= inside
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("change", "inside"),
    [
        ({"kind": "other"}, None),
        ({"routers": []}, None),
        ({"features": ["a"]}, None),
        ({}, {"left": [0] * 15}),
        ({}, {"left": [99] * 15}),
        ({}, {"feature": [500] * 15}),
        ({}, {"value": [0.0]}),
        ({}, {"feature": [], "threshold": [], "left": [], "right": [], "value": []}),
        (
            {"recogniser": {"tasks": ["a"], "counts": 4, "words": [[0]], "prior": [0], "least": [0], "accuracy": 1}},
            None,
        ),
    ],
)
def test_what_could_not_be_applied_is_refused(
    tmp_path: Path, change: dict[str, Any], inside: dict[str, Any] | None
) -> None:
    with pytest.raises(UsageError):
        read(changed(tmp_path, change, inside))


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "none.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(UsageError, match="is no router"):
        read(tmp_path / "deep.json")


def test_ranks() -> None:
    made = some_router().routers[0]
    router = Router(arm="a", baseline="b", fitted=made.fitted, ranks=[0.1] * 50 + [0.9] * 51)
    assert router.rank(0.05, 0.5) == 0.0
    assert router.rank(0.95, 0.5) == 1.0
    assert router.rank(0.1, 0.0) == 0.0
    assert router.rank(0.1, 1.0) == pytest.approx(0.49)
    assert router.rank(0.9, 0.0) == pytest.approx(0.5)
    assert router.rank(0.5, 0.3) == pytest.approx(0.495)


def test_of_a_long_prompt_both_ends_are_looked_at() -> None:
    text = "start " * 10_000 + "end " * 10_000
    assert len(ends(text)) == 2 * END_CHARACTERS + 1
    found = features(Asked(text, "end"))
    assert len(found) == len(FEATURES)
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(np.log1p(len(text)), abs=1e-3)
    assert {*buckets(Asked("start", ""), 64)} <= {*buckets(Asked(text, ""), 64)}


@pytest.mark.parametrize("text", ["", "\ud800", "\0" * 100, "é" * 5000, "1" * 5000, "\n" * 5000])
def test_any_text_has_features(text: str) -> None:
    assert np.isfinite(features(Asked(text, text))).all()
