"""What is learnt from: requests with both outcomes, and what was known of each before it was answered."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from kvload.analysis.records.table import Bools, Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Requests under the baseline and under one arm, one row a pair; arrays have shape (n,) unless said.

    Attributes:
        arm, baseline: their names.
        digest: of each prompt; rows with the same digest ask the same.
        request: numbers the requests: repeats of one have the same number.
        repeat: which repeat a row is of.
        cluster: numbers the conversations, within which requests are not independent.
        root: the digest of the first prompt of each row's conversation.
        task: the task of each request, or the data set it is from; None where nothing says.
        features: shape (n, f), by :func:`kvload.prompt_features.features`; no columns where the prompts are not there.
        base_score, arm_score, again_score: scores, 0 or more; NaN where there is none. ``again`` is the baseline's
            second run (A/A).
        base_tokens, arm_tokens, again_tokens: tokens of the answers; NaN where there is no length.
        base_cut, arm_cut, again_cut: the true length is at least that.
        base_bytes, arm_bytes: bytes of keys and values of the whole sequence; NaN where they are not known.
    """

    arm: str
    baseline: str
    digest: npt.NDArray[np.str_]
    request: Ints
    repeat: Ints
    cluster: Ints
    root: npt.NDArray[np.str_]
    task: npt.NDArray[np.object_]
    features: Floats
    base_score: Floats
    arm_score: Floats
    again_score: Floats
    base_tokens: Floats
    arm_tokens: Floats
    again_tokens: Floats
    base_cut: Bools
    arm_cut: Bools
    again_cut: Bools
    base_bytes: Floats
    arm_bytes: Floats

    def __len__(self) -> int:
        return len(self.request)

    @property
    def has_floor(self) -> bool:
        """The baseline was run a second time."""
        return bool((~np.isnan(self.again_score) | ~np.isnan(self.again_tokens)).any())

    def take(self, rows: Ints | Bools) -> "Samples":
        """Some of the rows."""
        kept: dict[str, Any] = {name: getattr(self, name)[rows] for name in _columns()}
        return Samples(arm=self.arm, baseline=self.baseline, **kept)


def _columns() -> list[str]:
    return [field.name for field in fields(Samples) if field.name not in {"arm", "baseline"}]


def concatenate(parts: Sequence[Samples]) -> Samples:
    """The rows of several comparisons of one arm; their requests and conversations are told apart.

    Raises:
        ValueError: there are none, or they are of different arms.
    """
    first = parts[0]
    if any((part.arm, part.baseline) != (first.arm, first.baseline) for part in parts):
        raise ValueError("samples of different arms")
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _columns()}
    for name in ("request", "cluster"):
        before = np.cumsum([0, *(int(getattr(part, name).max(initial=-1)) + 1 for part in parts[:-1])])
        joined[name] = np.concatenate([getattr(part, name) + start for part, start in zip(parts, before, strict=True)])
    return Samples(arm=first.arm, baseline=first.baseline, **joined)


def part_of(samples: Samples, part: int, parts: int) -> Samples:
    """One of several parts of the conversations, which share none; those that begin alike are always in the same part.

    Args:
        part: 1 to ``parts``.
    """
    place = np.array([int(root[:15] or "0", 16) % parts for root in samples.root.tolist()], np.int64)
    return samples.take(place == part - 1)
