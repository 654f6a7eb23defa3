"""What a user may say about a schedule, whatever server it is for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kvload.workloads.schedule.arrivals import ArrivalSpec
from kvload.workloads.schedule.prompts import PromptSpec
from kvload.workloads.traces.fitting import TooLong

ModeChoice = Literal["auto", "free", "forced"]


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How a trace is read and what is made of it.

    Attributes:
        format: the trace's format; told from its content where None.
        sort: allow arrivals out of order.
        time_unit, block_tokens: what the trace's numbers count in, where its rows do not show it.
        mode: ``free`` (natural ends), ``forced`` (recorded lengths), or ``auto``: what the trace is made for.
        arrivals: when requests are due.
        limit: at most so many requests.
        sample: share of whole sessions to keep, 0 to 1.
        default_max_tokens: cap of answers for which the trace has none (free mode).
        too_long: what to do about requests over the server's limit.
        scale_input: factor on the length of made-up prompts.
        temperature, top_p: in place of the trace's own.
        return_token_ids: ask the server for the answers' token ids.
        token_range: ids of made-up prompts, the upper end not included; by the vocabulary's size where None.
        extra_body: fields of every request, in place of the trace's own (``chat_template_kwargs`` and the like).
        seed: decides everything that is drawn for prompts.
    """

    format: str | None = None
    sort: bool = False
    time_unit: str | None = None
    block_tokens: int | None = None
    mode: ModeChoice = "auto"
    arrivals: ArrivalSpec = field(default_factory=ArrivalSpec)
    limit: int | None = None
    sample: float = 1.0
    default_max_tokens: int | None = None
    too_long: TooLong = "error"
    scale_input: float = 1.0
    temperature: float | None = None
    top_p: float | None = None
    return_token_ids: bool = False
    token_range: tuple[int, int] | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of a request that replace the trace's own."""
        given = {"temperature": self.temperature, "top_p": self.top_p}
        return {**self.extra_body, **{name: value for name, value in given.items() if value is not None}}

    def prompts(self, vocabulary: int | None) -> PromptSpec:
        """How prompts are made up.

        Args:
            vocabulary: tokens of the model's vocabulary, where they are known.
        """
        if self.token_range is not None:
            return PromptSpec(self.seed, *self.token_range)
        return PromptSpec(self.seed) if vocabulary is None else PromptSpec.for_vocabulary(vocabulary, self.seed)
