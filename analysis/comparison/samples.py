"""Single requests worth reading, with both answers."""

from dataclasses import dataclass

import numpy as np

from kvload.analysis.comparison.lengths import difference
from kvload.analysis.records.loading import texts
from kvload.analysis.records.pairs import LoadedArm, Pairs
from kvload.records import RequestRecord

MOST = 10


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One request of one repeat under both arms; a text is None where it was not kept, a score
    where it is not about quality."""

    index: int
    request_id: str
    repeat: int
    task: str | None
    difference: float | None
    base_tokens: int
    other_tokens: int
    base_finish: str | None
    other_finish: str | None
    expected: str | None
    base_text: str | None
    other_text: str | None
    base_score: float | None = None
    other_score: float | None = None


def worst_samples(pairs: Pairs, base: LoadedArm, other: LoadedArm, *, most: int = MOST) -> list[Sample]:
    """The requests whose answers grew most, then those that shrank most, half of each."""
    change = difference(pairs)
    known = np.flatnonzero(np.nan_to_num(change) != 0)
    order = known[np.argsort(change[known], kind="stable")]
    grown, shrunk = order[change[order] < 0], order[change[order] > 0][::-1]
    half = most // 2
    rows = [*grown[: max(half, most - len(shrunk))], *shrunk[: max(half, most - len(grown))]][:most]
    wanted: dict[int, set[int]] = {}
    for row in rows:
        wanted.setdefault(int(pairs.repeat[row]), set()).add(int(pairs.request[row]))
    samples = []
    both = {repeat: _records(base, other, repeat, indices) for repeat, indices in wanted.items()}
    for row in rows:
        found = both[int(pairs.repeat[row])].get(int(pairs.request[row]))
        if found:
            samples.append(sample_of(int(pairs.repeat[row]), *found))
    return samples


def _records(
    base: LoadedArm, other: LoadedArm, repeat: int, wanted: set[int]
) -> dict[int, tuple[RequestRecord, RequestRecord]]:
    paths = base.runs[repeat].path, other.runs[repeat].path
    if paths[0] is None or paths[1] is None:
        return {}
    one, two = texts(paths[0], wanted), texts(paths[1], wanted)
    return {index: (one[index], two[index]) for index in wanted}


def sample_of(repeat: int, one: RequestRecord, two: RequestRecord) -> Sample:
    """A request under the baseline and under an arm."""
    before, after = one.output_tokens or 0, two.output_tokens or 0
    return Sample(
        index=one.index,
        request_id=one.request_id,
        repeat=repeat,
        task=one.task,
        difference=1 - after / before if before else None,
        base_tokens=before,
        other_tokens=after,
        base_finish=one.finish_reason,
        other_finish=two.finish_reason,
        expected=one.expected,
        base_text=one.text,
        other_text=two.text,
    )
