"""Per-sample scores that other harnesses wrote: per arm and dataset a JSON list of ``{"id": ..., "score": ...}``.

Layouts::

    ROOT/ARM/DATASET.json      a folder of arms
    ARM/DATASET.json           one folder for each arm
    ARM__DATASET.json          files, or a folder of them; without "__" the whole name is the arm
    any other                  by a pattern of {arm} and {dataset}, as {arm}_{dataset}_eval.json

Where a pattern fits a name in several ways (arms and datasets with underscores), the split is taken whose arm and
dataset occur most often among all files.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from kvload.analysis.quality.assess import ScoreTable
from kvload.analysis.quality.negatives import first_of_each
from kvload.errors import UsageError

MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_ROWS = 5_000_000
MAX_FILES = 10_000
SEPARATOR = "__"
BASELINE_NAMES = ("none", "baseline", "base", "fp16", "bf16", "full")
_ONE_DATASET = "all"
_TWIN_ROWS = 10


@dataclass(frozen=True)
class ScoreFile:
    """One file: whose scores on what, by id; a score is NaN where the file says null. ``duplicates`` were dropped."""

    arm: str
    dataset: str
    path: Path
    scores: Mapping[str, float]
    duplicates: int


def read_scores(paths: Iterable[Path], pattern: str | None = None) -> list[ScoreFile]:
    """All score files at the given places.

    Args:
        paths: files, and folders.
        pattern: how the arm and the dataset stand in a file's name, or with a slash in its path below the folder.

    Raises:
        UsageError: a place holds no score files, two files are of the same arm and dataset, or a file is malformed; the
            message names file, row and field.
    """
    found: dict[tuple[str, str], ScoreFile] = {}
    rows = 0
    for arm, dataset, path in _places(paths) if pattern is None else _matched(paths, pattern):
        if (arm, dataset) in found:
            other = found[arm, dataset].path
            raise UsageError(f"scores of '{arm}' on '{dataset}' are given twice", where=f"{path}, {other}")
        if len(found) == MAX_FILES:
            raise UsageError(f"more than {MAX_FILES} score files", where=str(path))
        scores, duplicates = _read(path)
        rows += len(scores)
        if rows > MAX_ROWS:
            raise UsageError(f"more than {MAX_ROWS:,} scores in all", where=str(path))
        found[arm, dataset] = ScoreFile(arm, dataset, path, scores, duplicates)
    return list(found.values())


def as_table(files: Sequence[ScoreFile], baseline: str | None = None) -> ScoreTable:
    """The scores of all arms side by side: a row for every id of the baseline, datasets as tasks.

    A dataset that repeats another one (the same ids and scores under every arm) is left out as a duplicate.

    Args:
        files: what was read.
        baseline: the arm to compare with; where None the one that is named like a baseline.

    Raises:
        UsageError: there is no such arm, or no other one to compare with it.
    """
    arms = list(dict.fromkeys(file.arm for file in files))
    base = _baseline(arms, baseline)
    others = [arm for arm in arms if arm != base]
    if not others:
        raise UsageError(f"only the scores of '{base}' are given: there is nothing to compare with them")
    by_place = {(file.arm, file.dataset): file for file in files}
    datasets = sorted(file.dataset for file in files if file.arm == base)
    notes = [f"'{name}' has no baseline scores and is left out" for name in _others(files, base, datasets)]
    kept, twins = _without_twins(datasets, arms, by_place)
    notes += [f"dataset '{name}' repeats '{first}' and is left out" for name, first in twins.items()]
    rows = [(dataset, name) for dataset in kept for name in by_place[base, dataset].scores]

    def column(arm: str) -> Any:
        scores = {dataset: by_place[arm, dataset].scores for dataset in kept if (arm, dataset) in by_place}
        return np.array([scores.get(dataset, {}).get(name, math.nan) for dataset, name in rows], dtype=np.float64)

    own, columns = column(base), {arm: column(arm) for arm in others}
    for arm in others:
        extra = sum(len(file.scores) for file in files if file.arm == arm and file.dataset in kept)
        extra -= int(sum(name in by_place[arm, dataset].scores for dataset, name in rows if (arm, dataset) in by_place))
        if extra:
            notes.append(f"{extra:,} scores of '{arm}' have no partner in '{base}' and are left out")
    dropped = sum(file.duplicates for file in files) + sum(len(by_place[base, name].scores) for name in twins)
    return ScoreTable(
        ids=tuple(name for _, name in rows),
        tasks=tuple(dataset for dataset, _ in rows),
        scorer=("given",) * len(rows),
        unit=np.arange(len(rows), dtype=np.int64),
        base=own,
        arms=columns,
        base_name=base,
        duplicates=dropped,
        missing={arm: int(np.isnan(scores).sum()) for arm, scores in {base: own, **columns}.items()},
        notes=tuple(notes),
    )


def _baseline(arms: Sequence[str], wanted: str | None) -> str:
    if wanted is not None:
        if wanted not in arms:
            raise UsageError(f"no scores of '{wanted}'", where="--baseline", hint=f"there are: {', '.join(arms)}")
        return wanted
    for name_of in (str.lower, _first_word):
        named = [arm for arm in arms if name_of(arm) in BASELINE_NAMES]
        if len(named) == 1:
            return named[0]
    raise UsageError("which arm is the baseline?", hint=f"name one by --baseline: {', '.join(arms)}")


def _first_word(arm: str) -> str:
    return re.split(r"[^a-z0-9]", arm.lower(), maxsplit=1)[0]


def _others(files: Sequence[ScoreFile], base: str, datasets: Sequence[str]) -> list[str]:
    return sorted({file.dataset for file in files if file.arm != base} - set(datasets))


def _without_twins(
    datasets: Sequence[str], arms: Sequence[str], by_place: Mapping[tuple[str, str], ScoreFile]
) -> tuple[list[str], dict[str, str]]:
    def content(dataset: str) -> object:
        found = [by_place.get((arm, dataset)) for arm in arms]
        columns = [None if file is None else tuple(file.scores.items()) for file in found]
        own = {score for column in columns if column for _, score in column}
        # few rows, or all the same score, may be equal by chance
        rows = max((len(column) for column in columns if column), default=0)
        return tuple(columns) if rows >= _TWIN_ROWS and len(own) > 1 else dataset

    contents = [content(dataset) for dataset in datasets]
    kept, _ = first_of_each(contents)
    first = {contents[row]: datasets[row] for row in reversed(range(len(datasets)))}
    twins = {datasets[row]: first[contents[row]] for row in range(len(datasets)) if row not in set(kept)}
    return [datasets[row] for row in kept], twins


def _places(paths: Iterable[Path]) -> Iterator[tuple[str, str, Path]]:
    for path in paths:
        if path.is_file():
            arm, _, dataset = path.stem.partition(SEPARATOR)
            yield arm, dataset or _ONE_DATASET, path
            continue
        if not path.is_dir():
            raise UsageError("there is no such file or folder", where=str(path))
        own = sorted(path.glob("*.json"))
        inner = [] if own else sorted(path.glob("*/*.json"))
        if not own and not inner:
            raise UsageError("the folder holds no score files", where=str(path), hint="wanted: ARM/DATASET.json")
        flat = bool(own) and all(SEPARATOR in file.stem for file in own)
        for file in own:
            arm, _, dataset = file.stem.partition(SEPARATOR) if flat else (path.resolve().name, "", file.stem)
            yield arm, dataset, file
        for file in inner:
            yield file.parent.name, file.stem, file


def _matched(paths: Iterable[Path], pattern: str) -> Iterator[tuple[str, str, Path]]:
    """Files whose names follow a pattern."""
    template = _template(pattern)
    files: dict[Path, str] = {}
    for path in paths:
        if not path.exists():
            raise UsageError("there is no such file or folder", where=str(path))
        for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
            files[file] = file.relative_to(path).as_posix() if path.is_dir() and "/" in pattern else file.name
    splits = {file: list(_splits(template, name)) for file, name in files.items()}
    fitting = {file: found for file, found in splits.items() if found}
    if not fitting:
        some = ", ".join(list(files.values())[:3]) or "none"
        raise UsageError(f"no file fits '{pattern}'", where="--pattern", hint=f"there are: {some}")
    arms = Counter(arm for found in fitting.values() for arm in {arm for arm, _ in found})
    datasets = Counter(dataset for found in fitting.values() for dataset in {dataset for _, dataset in found})
    for file, found in fitting.items():
        arm, dataset = max(found, key=lambda split: (arms[split[0]] * datasets[split[1]], len(split[0])))
        yield arm, dataset, file


def _template(pattern: str) -> list[str]:
    """A pattern's fixed parts and, between them, the names of what varies."""
    parts = re.split(r"(\{arm\}|\{dataset\})", pattern)
    names = parts[1::2]
    if names.count("{arm}") != 1 or names.count("{dataset}") > 1:
        raise UsageError(
            f"'{pattern}' is not a pattern",
            where="--pattern",
            hint="write {arm} and {dataset}: '{arm}__{dataset}.json'",
        )
    if len(parts) == 5 and not parts[2]:
        raise UsageError("something must stand between {arm} and {dataset}", where="--pattern")
    return parts


def _splits(template: list[str], name: str) -> Iterator[tuple[str, str]]:
    """Every way in which a name fits: arm and dataset."""
    head, tail = template[0], template[-1]
    if not name.startswith(head) or not name.endswith(tail) or len(name) <= len(head) + len(tail):
        return
    middle = name[len(head) : len(name) - len(tail)]
    if len(template) == 3:
        yield middle, _ONE_DATASET
        return
    between, place = template[2], 0
    while (place := middle.find(between, place + 1)) > 0:
        pair = middle[:place], middle[place + len(between) :]
        if pair[1]:
            yield pair if template[1] == "{arm}" else pair[::-1]


def _read(path: Path) -> tuple[dict[str, float], int]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UsageError(f"the file is larger than {MAX_FILE_BYTES >> 20} MiB", where=str(path))
        rows = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(rows, list):
        raise UsageError('not a JSON list of {"id", "score"}', where=str(path))
    scores: dict[str, float] = {}
    for number, row in enumerate(rows, 1):
        name, value = _row(row, f"{path}, row {number}")
        # the first of several rows of one sample counts
        scores.setdefault(name, value)
    return scores, len(rows) - len(scores)


def _row(row: object, where: str) -> tuple[str, float]:
    if not isinstance(row, dict):
        raise UsageError("not an object", where=where)
    for field in ("id", "score"):
        if field not in row:
            raise UsageError(f"field '{field}' is missing", where=where)
    name, value = row["id"], row["score"]
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise UsageError("field 'id' is neither a text nor a whole number", where=where)
    if value is None:
        return str(name), math.nan
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError("field 'score' is not a number of 0 or more", where=where)
    return str(name), float(value)
