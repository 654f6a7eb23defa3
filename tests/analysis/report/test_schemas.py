"""What is written is what the schemas say."""

import json
from pathlib import Path
from typing import Any

import pytest

from kvload.analysis.comparison.compare import compare
from kvload.analysis.records.pairs import ArmRuns
from kvload.analysis.report import compare_json, json_report, schemas
from kvload.analysis.run.summary import summarise
from tests.analysis.synthetic import mixed

TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": int | float,
    "boolean": bool,
    "null": type(None),
}


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], where: str = "") -> list[str]:
    """A reading of JSON Schema, as far as these schemas go."""
    if "$ref" in schema:
        found: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return problems(value, found, root, where)
    if "anyOf" in schema:
        each = [problems(value, one, root, where) for one in schema["anyOf"]]
        return [] if any(not found for found in each) else [f"{where}: none of {len(each)}: {each}"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r} is not in {schema['enum']}"]
    kinds = schema.get("type", list(TYPES))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    fits = any(isinstance(value, TYPES[kind]) and (kind == "boolean" or type(value) is not bool) for kind in kinds)
    if not fits:
        return [f"{where}: {type(value).__name__} is not {kinds}"]
    told = []
    if isinstance(value, dict):
        told += [f"{where}: {name} is missing" for name in schema.get("required", ()) if name not in value]
        others = schema.get("additionalProperties", True)
        for name, inner in value.items():
            if name in schema.get("properties", {}):
                told += problems(inner, schema["properties"][name], root, f"{where}/{name}")
            elif isinstance(others, dict):
                told += problems(inner, others, root, f"{where}/{name}")
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        for place, inner in enumerate(value):
            rule = first[place] if place < len(first) else schema.get("items", {})
            told += problems(inner, rule, root, f"{where}/{place}") if isinstance(rule, dict) else []
    return told


def test_a_report_fits_its_schema_and_the_schema_has_every_key(tmp_path: Path) -> None:
    written = json.loads(json.dumps(json_report.as_dict(summarise(mixed(tmp_path / "run")))))
    schema = schemas.schema_of("report")
    body = schema["$defs"]["Report"] if "$ref" in schema else schema
    assert set(written) == set(body["properties"])
    assert problems(written, schema, schema) == []


def test_a_comparison_fits_its_schema_and_the_schema_has_every_key(tmp_path: Path) -> None:
    arms = [
        ArmRuns(name, (mixed(tmp_path / name, seed=seed, slo={"ttft": 0.15, "p99_ttft": 1.0}),), baseline=seed == 1)
        for seed, name in ((1, "none"), (2, "int8"))
    ]
    written = json.loads(json.dumps(compare_json.as_dict(compare(arms))))
    schema = schemas.schema_of("comparison")
    body = schema["$defs"]["Comparison"] if "$ref" in schema else schema
    assert set(written) == set(body["properties"])
    assert problems(written, schema, schema) == []


@pytest.mark.parametrize("change", [{"sent": "12"}, {"partial": None}, {"client": []}])
def test_what_does_not_fit_is_told(tmp_path: Path, change: dict[str, Any]) -> None:
    written = json.loads(json.dumps(json_report.as_dict(summarise(mixed(tmp_path / "run"))))) | change
    schema = schemas.schema_of("report")
    assert problems(written, schema, schema) != []
