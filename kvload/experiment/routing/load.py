"""Comparisons as what a router learns from: both outcomes of every request, and the request itself.

A comparison is the folder of an experiment, a folder of run folders (``r0-none``, ``r0-kivi-2`` ...), several run
folders, or score files as ``kvload quality`` reads them. Prompts come from the trace that was replayed.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kvload.analysis.quality.assess import AGREEMENT, ArmScorer, ScoreTable
from kvload.analysis.quality.score_files import as_table, read_scores
from kvload.analysis.records.loading import texts
from kvload.analysis.records.outcome import censored
from kvload.analysis.records.pairs import ArmRuns, LoadedArm, Pairs, align, load_arm, pair
from kvload.analysis.records.table import Floats
from kvload.analysis.routing.samples import Samples, concatenate
from kvload.errors import UsageError
from kvload.experiment import plan as plans
from kvload.experiment.comparison import existing_arms, experiment_arms
from kvload.experiment.plan import FLOOR_SUFFIX
from kvload.experiment.run import trace_copy
from kvload.prompt_features import FEATURES, Asked, asked, features
from kvload.records import RequestRecord, ServerInfo
from kvload.rundir import RunDir

if TYPE_CHECKING:
    from kvload.workloads.traces.trace import TraceRequest

_RUN_NAME = re.compile(r"r(\d+)-(.+)")
_AGAIN = ("-again", "_again_", " (again)")
DIGEST_LENGTH = 24
"""Hexadecimal digits of a prompt's digest that are kept."""


@dataclass(frozen=True)
class Learnt:
    """What some comparisons hold.

    Attributes:
        samples: by arm, without the baseline.
        requests: every request of the baseline, its task and its conversation, to tell tasks by.
        notes: what was left out.
    """

    samples: Mapping[str, Samples]
    requests: Sequence[tuple[Asked, str | None, int]]
    notes: Sequence[str]


@dataclass(frozen=True)
class Prompts:
    """Where the prompts of a comparison are: a trace and its format (None: told by content)."""

    path: Path
    format: str | None


def load_comparisons(
    paths: Sequence[Path],
    *,
    baseline: str | None = None,
    trace: Path | None = None,
    pattern: str | None = None,
    arms: Sequence[str] = (),
    prompts: bool = True,
) -> Learnt:
    """Read comparisons, the same arms of them together.

    Args:
        paths: folders, or score files.
        baseline: the arm to compare with, where it is not plain.
        trace: the trace that was replayed, or the folder it is in, where it is not where the runs say.
        pattern: how score files are named, see :mod:`kvload.analysis.quality.score_files`.
        arms: only these.
        prompts: read what was asked, too; without, nothing is said of a trace that is not there.

    Raises:
        UsageError: a place holds no comparison, or no arm of that name.
    """
    found: list[Learnt] = []
    runs = [path for path in paths if (path / "manifest.json").is_file()]
    if runs:
        if len(runs) < len(paths):
            raise UsageError("run folders and other comparisons cannot be mixed", where=str(runs[0]))
        found.append(_of_arms(existing_arms(runs, baseline, None), None, trace, arms, asks=prompts))
    else:
        found += [_read(path, baseline, trace, pattern, arms, prompts) for path in paths]
    names = list(dict.fromkeys(name for one in found for name in one.samples))
    if not names:
        raise UsageError("no arm to learn from", where=", ".join(map(str, paths)))
    joined = {}
    for name in names:
        parts = [one.samples[name] for one in found if name in one.samples]
        if len({part.features.shape[1] for part in parts}) > 1:
            raise UsageError(
                "some of the comparisons have prompts and others have none", hint="give the trace of all with --trace"
            )
        if len({part.baseline for part in parts}) > 1:
            raise UsageError(f"the comparisons of '{name}' have different baselines", where="--baseline")
        joined[name] = concatenate(parts)
    requests: list[tuple[Asked, str | None, int]] = []
    for one in found:
        start = max((cluster for _, _, cluster in requests), default=-1) + 1
        requests += [(what, task, cluster + start) for what, task, cluster in one.requests]
    return Learnt(joined, requests, list(dict.fromkeys(note for one in found for note in one.notes)))


def _read(
    path: Path, baseline: str | None, trace: Path | None, pattern: str | None, arms: Sequence[str], asks: bool
) -> Learnt:
    if (path / plans.PLAN_NAME).is_file():
        plan = plans.load(path)
        prompts = Prompts(trace_copy(plan, path), plan.run.schedule.format)
        dataset = Path(plan.trace).stem
        return _of_arms(experiment_arms(plan, path), prompts, None, arms, dataset=dataset, asks=asks)
    inner = sorted(child for child in path.glob("*") if (child / "manifest.json").is_file()) if path.is_dir() else []
    if inner:
        return _of_arms(_named_arms(inner, baseline), None, trace, arms, dataset=path.name, asks=asks)
    if not path.exists():
        raise UsageError("there is no such comparison", where=str(path))
    table = as_table(read_scores([path], pattern), baseline)
    return _of_scores(table, arms)


def _named_arms(runs: Sequence[Path], baseline: str | None) -> list[ArmRuns]:
    """Run folders by their names, ``rREPEAT-ARM``; the baseline's second run is called ``-again``."""
    by_name: dict[str, list[RunDir]] = {}
    for path in runs:
        run = RunDir.open(path)
        if run.manifest().partial:
            continue
        matched = _RUN_NAME.fullmatch(path.name)
        by_name.setdefault(matched[2] if matched else path.name, []).append(run)
    again = {name for name in by_name if name.endswith(_AGAIN)}
    plain = [name for name in by_name if name not in again]
    if not plain:
        raise UsageError("it holds no complete run", where=str(runs[0].parent))
    base = baseline or ("none" if "none" in plain else plain[0])
    if base not in plain:
        raise UsageError(f"the baseline '{base}' is not among: {', '.join(plain)}", where="--baseline")
    found = []
    for name, folders in by_name.items():
        is_floor = name in again and name.startswith(base)
        label = base + FLOOR_SUFFIX if is_floor else name
        found.append(ArmRuns(label, tuple(folders), baseline=name == base, floor=is_floor))
    return found


def _of_arms(
    arms: Sequence[ArmRuns],
    prompts: Prompts | None,
    trace: Path | None,
    wanted: Sequence[str],
    *,
    dataset: str | None = None,
    asks: bool = True,
) -> Learnt:
    loaded = [load_arm(arm) for arm in arms]
    base = next((arm for arm in loaded if arm.baseline), None)
    if base is None:
        raise UsageError("no complete run of the baseline", where=str(arms[0].runs[0].path if arms else ""))
    notes: list[str] = []
    records = {repeat: texts(run.path) for repeat, run in base.runs.items() if run.path is not None}
    scorers = {repeat: ArmScorer(list(of.values()), base.name) for repeat, of in records.items()}
    info = base.first.manifest.trace
    name = dataset or Path(info.path).stem
    if prompts is None:
        named = trace / Path(info.path).name if trace is not None and trace.is_dir() else trace
        prompts = Prompts(named or Path(info.path), info.format)
    known = _prompts(prompts, info.sha256, trace is not None, notes) if asks else None
    clusters = _clusters(records)
    floor = next((arm for arm in loaded if arm.floor), None)
    samples = {}
    there = [arm.name for arm in loaded if not (arm.baseline or arm.floor or arm.perturbed)]
    _check_wanted(wanted, there)
    for arm in loaded:
        if arm.baseline or arm.floor or arm.perturbed or (wanted and arm.name not in wanted):
            continue
        samples[arm.name] = _samples(base, arm, floor, records, scorers, known, clusters, name)
    requests = []
    if known is not None:
        first = next(iter(records.values()))
        for record in first.values():
            what = _with_cap(known.get(record.request_id), record)
            if what is not None:
                requests.append((what, record.task or name, clusters[record.index]))
    return Learnt(samples, requests, notes)


def _check_wanted(wanted: Sequence[str], there: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in there]
    if missing:
        raise UsageError(f"no arm '{missing[0]}'", where="--arm", hint=f"there are: {', '.join(there)}")


def _samples(
    base: LoadedArm,
    arm: LoadedArm,
    floor: LoadedArm | None,
    records: Mapping[int, Mapping[int, RequestRecord]],
    scorers: Mapping[int, ArmScorer],
    known: Mapping[str, Asked] | None,
    clusters: Mapping[int, int],
    dataset: str,
) -> Samples:
    pairs = pair(base, arm)
    roots = _roots(records, clusters)
    n = len(pairs.base)
    again_tokens, again_cut = np.full(n, np.nan), np.zeros(n, np.bool_)
    again_score = np.full(n, np.nan)
    base_score, arm_score = _scores(pairs, arm, scorers)
    if floor is not None:
        second = pair(base, floor)
        rows, rows_second = align(pairs, second)
        again_tokens[rows] = second.other.output_tokens[rows_second]
        again_cut[rows] = censored(second.other)[rows_second]
        again_score[rows] = _scores(second, floor, scorers)[1][rows_second]
    of_rows = [records[int(repeat)][int(index)] for repeat, index in zip(pairs.repeat, pairs.request, strict=True)]
    columns = np.zeros((n, 0))
    if known is not None:
        seen = [_with_cap(known.get(record.request_id), record) for record in of_rows]
        columns = np.array([features(what or Asked("", "")) for what in seen]).reshape(n, len(FEATURES))
    forced = pairs.base.ignore_eos | (pairs.base.min_tokens >= pairs.base.max_tokens)
    base_tokens = np.where(forced, np.nan, pairs.base.output_tokens)
    lengths = [
        np.where(np.isnan(table.prompt_tokens), table.input_tokens, table.prompt_tokens) + table.output_tokens
        for table in (pairs.base, pairs.other)
    ]
    held = [_cache_bytes(one.first.manifest.server, of) for one, of in zip((base, arm), lengths, strict=True)]
    return Samples(
        arm=arm.name,
        baseline=base.name,
        digest=np.array([digest.decode()[:DIGEST_LENGTH] for digest in pairs.base.prompt_digest.tolist()], np.str_),
        request=pairs.request.astype(np.int64),
        repeat=pairs.repeat,
        cluster=np.array([clusters[int(index)] for index in pairs.request], np.int64),
        root=np.array([roots[clusters[int(index)]] for index in pairs.request], np.str_),
        task=np.array([record.task or dataset for record in of_rows], np.object_),
        features=columns,
        base_score=base_score,
        arm_score=arm_score,
        again_score=again_score,
        base_tokens=base_tokens,
        arm_tokens=np.where(forced, np.nan, pairs.other.output_tokens),
        again_tokens=again_tokens,
        base_cut=censored(pairs.base),
        arm_cut=censored(pairs.other),
        again_cut=again_cut,
        base_bytes=held[0],
        arm_bytes=held[1],
    )


def _cache_bytes(info: ServerInfo, lengths: Floats) -> Floats:
    """Bytes of keys and values of whole sequences, as the method claims; NaN where it claims nothing.

    The manifest's claim is for one length; budgets and windows make it depend on that, as the catalogue has it.
    """
    from kvload.servers.catalogue.asked import parse_method
    from kvload.servers.catalogue.claims import CLAIM_HEAD_DIM, CLAIM_TOKENS, Stored
    from kvload.servers.catalogue.methods import METHODS

    if info.bytes_per_token is None:
        return np.full(len(lengths), np.nan)
    try:
        spec = parse_method(info.method or "")
    except UsageError:
        return lengths * info.bytes_per_token
    claim = METHODS[spec.name].claim

    def of(tokens: int) -> float:
        return claim(Stored(tokens, CLAIM_HEAD_DIM, info.element_bytes or 2, spec.options))

    scale = info.bytes_per_token / of(info.claim_tokens or CLAIM_TOKENS)
    known = {int(length): of(int(length)) for length in np.unique(lengths) if length > 0}
    return np.array([length * scale * known.get(int(length), np.nan) if length > 0 else np.nan for length in lengths])


def _scores(pairs: Pairs, arm: LoadedArm, scorers: Mapping[int, ArmScorer]) -> tuple[Floats, Floats]:
    """The scores of both sides of some pairs; NaN where nothing was expected, or nothing answered."""
    base, other = np.full(len(pairs.base), np.nan), np.full(len(pairs.base), np.nan)
    for repeat, scorer in scorers.items():
        path = arm.runs[repeat].path if repeat in arm.runs else None
        if path is None:
            continue
        table = scorer.table({"arm": scorer.score(texts(path).values())})
        scored = [place for place, name in enumerate(table.scorer) if name != AGREEMENT]
        by_index = {int(table.unit[place]): place for place in scored}
        for row in np.flatnonzero(pairs.repeat == repeat):
            place = by_index.get(int(pairs.request[row]))
            if place is not None:
                base[row], other[row] = table.base[place], table.arms["arm"][place]
    return base, other


def _clusters(records: Mapping[int, Mapping[int, RequestRecord]]) -> dict[int, int]:
    """The conversation of every request, by its index."""
    names: dict[str, int] = {}
    found = {}
    for of in records.values():
        for index, record in of.items():
            key = f"request {index}" if record.session is None else f"session {record.session}"
            found[index] = names.setdefault(key, len(names))
    return found


def _roots(records: Mapping[int, Mapping[int, RequestRecord]], clusters: Mapping[int, int]) -> dict[int, str]:
    """The digest of the first prompt of every conversation."""
    found: dict[int, str] = {}
    for of in records.values():
        for index in sorted(of):
            found.setdefault(clusters[index], of[index].prompt_digest[:DIGEST_LENGTH])
    return found


def _prompts(prompts: Prompts, sha256: str, is_named: bool, notes: list[str]) -> dict[str, Asked] | None:
    """What every request of a trace asks, by its id; None where the trace is not there.

    Args:
        sha256: of the trace that was replayed.
        is_named: the user named it.

    Raises:
        UsageError: a trace that was named is not there, or another one is.
    """
    from kvload.workloads.traces.formats import read_trace

    if not prompts.path.is_file():
        if is_named:
            raise UsageError("there is no such trace", where=str(prompts.path))
        notes.append(f"the trace {prompts.path} is not there: only tasks are learnt; name it with --trace")
        return None
    if plans.trace_digest(prompts.path) != sha256:
        raise UsageError("this is not the trace that was replayed: its content differs", where=str(prompts.path))
    found: dict[str, Asked] = {}
    before: dict[str, list[str]] = {}
    for request in read_trace(prompts.path, prompts.format):
        found[request.id] = _asked(request, before)
    return found


def _asked(request: "TraceRequest", before: dict[str, list[str]]) -> Asked:
    """What one turn asks, with what the user said in the turns before it."""
    from kvload.workloads.traces.trace import continues_conversation

    if request.messages is not None:
        what = asked({"messages": request.messages})
    else:
        what = asked({"prompt": request.prompt if request.prompt is not None else request.prompt_token_ids})
        if not what.text and request.input_length:
            what = asked({"prompt": [0] * min(request.input_length, 1 << 20)})
    if request.session is None:
        return what
    earlier = before.setdefault(request.session, [])
    text = "\n".join([*earlier, what.text]) if earlier and continues_conversation(request) else what.text
    earlier.append(what.text)
    turn = max(request.turn or 0, what.turn)
    return Asked(text, what.last, max(what.messages, len(earlier)), turn)


def _with_cap(what: Asked | None, record: RequestRecord) -> Asked | None:
    if what is None:
        return None
    return Asked(what.text, what.last, what.messages, what.turn, record.max_tokens or None)


def _of_scores(table: ScoreTable, arms: Sequence[str]) -> Learnt:
    """Score files: tasks and scores, and nothing of the prompts."""
    n = len(table.ids)
    nothing, no = np.full(n, np.nan), np.zeros(n, np.bool_)
    digests = [
        hashlib.sha256(f"{task}\0{name}".encode()).hexdigest()[:DIGEST_LENGTH]
        for task, name in zip(table.tasks, table.ids, strict=True)
    ]
    again = next((name for name in table.arms if name.endswith(_AGAIN)), None)
    _check_wanted(arms, [name for name in table.arms if name != again])
    samples = {
        name: Samples(
            arm=name,
            baseline=table.base_name,
            digest=np.array(digests, np.str_),
            request=np.arange(n),
            repeat=np.zeros(n, np.int64),
            cluster=np.arange(n),
            root=np.array(digests, np.str_),
            task=np.array([task or None for task in table.tasks], np.object_),
            features=np.zeros((n, 0)),
            base_score=table.base,
            arm_score=scores,
            again_score=nothing if again is None else table.arms[again],
            base_tokens=nothing,
            arm_tokens=nothing,
            again_tokens=nothing,
            base_cut=no,
            arm_cut=no,
            again_cut=no,
            base_bytes=nothing,
            arm_bytes=nothing,
        )
        for name, scores in table.arms.items()
        if name != again and (not arms or name in arms)
    }
    return Learnt(samples, [], [*table.notes, "score files hold no prompts: only tasks are learnt"])
