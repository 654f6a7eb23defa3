"""The catalogue of KV-cache compression methods: what each is, claims and takes as options.

A method is named the same for every engine. The embedded engine implements a method under its name; vLLM and SGLang
are started with a setting of their own, which their adapters look up by the same name.
"""

import importlib.metadata
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from kvload.servers.catalogue import claims

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MethodOption:
    """One option of a method, with its published default. Budgets and windows are whole tokens."""

    name: str
    default: int | float
    help: str
    minimum: float = 0
    maximum: float = float("inf")


@dataclass(frozen=True)
class Method:
    """One row of the catalogue.

    Attributes:
        name: what the user types.
        title: the method's own name.
        summary: one line.
        explanation: about ten lines for ``kvload methods NAME``.
        paper: where it is defined.
        keeps_exact: what stays in full precision.
        claim: bytes per token, per layer and KV head; see :mod:`kvload.servers.catalogue.claims`.
        implementation: ``module.Class`` in ``servers/embedded/compression``, or ``module:Class`` anywhere.
        error_limit: how much of the context's effect on the answers it may lose and still count as sound (see
            :mod:`kvload.servers.verification.verify`). Eviction loses what it drops by design: there the check only
            tells a working cache from a broken one.
        evicts: whether tokens are dropped (their attention is lost) rather than stored in fewer bits.
        kept: options whose sum is the tokens that stay of a prompt; none where that depends on the text.
        evicts_generated: whether generated tokens push others out.
        at_most: whether the claim is a ceiling, and what is held depends on the text.
        options: in the order they are shown.
        fixed: arguments of the implementation that the name stands for and the user cannot change.
        check: says what is wrong with a combination of options, or returns None.
    """

    name: str
    title: str
    summary: str
    explanation: str
    paper: str
    keeps_exact: str
    claim: claims.Claim
    implementation: str
    error_limit: float = 0.3
    evicts: bool = False
    kept: tuple[str, ...] = ()
    evicts_generated: bool = False
    at_most: bool = False
    options: tuple[MethodOption, ...] = ()
    fixed: Mapping[str, int | float] = field(default_factory=lambda: MappingProxyType({}))
    check: Callable[[Mapping[str, int | float]], str | None] = lambda _: None

    @property
    def compresses(self) -> bool:
        """Whether every token is stored, in fewer bytes."""
        return not self.evicts and self.claim is not claims.uncompressed


def _whole_groups(options: Mapping[str, int | float]) -> str | None:
    for name in ("residual", "block"):
        if name in options and options[name] % options["group"]:
            return f"{name} ({options[name]}) must be a multiple of group ({options['group']})"
    return None


def _recent_fits(options: Mapping[str, int | float]) -> str | None:
    for name in ("recent", "window"):
        if name in options and options[name] >= options["budget"]:
            return f"{name} ({options[name]}) must be smaller than budget ({options['budget']})"
    return None


def _ordered_thresholds(options: Mapping[str, int | float]) -> str | None:
    if options["low"] > options["high"]:
        return f"low ({options['low']}) must not exceed high ({options['high']})"
    return None


GROUP = MethodOption("group", 32, "numbers that share a scale and a minimum", 8, 256)
KIVI_OPTIONS = (GROUP, MethodOption("residual", 128, "newest tokens kept in full precision", 8, 4096))
GEAR_OPTIONS = (
    MethodOption("group", 64, "numbers that share a scale and a minimum", 8, 256),
    MethodOption("block", 64, "tokens that are compressed together", 8, 256),
    MethodOption("rank", 4, "rank of the error's approximation in the prompt", 1, 32),
    MethodOption("decode_rank", 2, "the same for generated tokens", 1, 32),
    MethodOption("outliers", 0.02, "share of the numbers kept exactly", 0.0, 0.5),
)

_ROWS = (
    Method(
        name="none",
        title="Uncompressed",
        summary="keys and values as the model makes them: the baseline",
        explanation="""\
Nothing is compressed: every key and value is kept in the model's own precision, in pages of 16
tokens. All other methods are judged against this one. When you compare, run it twice: two runs
of the same server already differ a little (batching changes rounding, and with it now and then
a token), and only what goes beyond that difference is the method's doing.""",
        paper="Kwon et al. 2023, PagedAttention, arXiv 2309.06180",
        keeps_exact="everything",
        claim=claims.uncompressed,
        implementation="uncompressed.Uncompressed",
    ),
    Method(
        name="fp8-e4m3",
        title="FP8 (e4m3), one scale per token and head",
        summary="8-bit floating point, half of fp16",
        explanation="""\
Each key and value is scaled so that its largest number becomes 448, the largest of the 8-bit
floating-point format e4m3, and rounded to that format: 1 sign, 4 exponent and 3 mantissa bits.
The scale is kept per token and head, so one odd token cannot spoil the others; engines that
keep a single scale for a whole layer (often just 1.0) are coarser.
It halves the cache, is exact to about 6 % in the worst single number and rarely shows in
answers. GPUs since Ada and Hopper read this format directly.""",
        paper="Micikevicius et al. 2022, FP8 Formats for Deep Learning, arXiv 2209.05433",
        keeps_exact="nothing",
        claim=claims.eight_bit,
        implementation="fp8.Fp8",
    ),
    Method(
        name="int8",
        title="INT8, one scale per token and head",
        summary="8-bit integers, half of fp16",
        explanation="""\
Each key and value is divided by a scale, its largest magnitude over 127, and rounded to whole
numbers from -127 to 127. The scale is found anew for every token and every head, while serving:
no calibration is needed.
It halves the cache. The step between two representable numbers is below 1 % of the largest in
the vector, so answers rarely change; where they do, compare with a second run without
compression before blaming the method.""",
        paper="vLLM pull request 38378 (per-token-head quantisation); Dettmers et al. 2022, arXiv 2208.07339",
        keeps_exact="nothing",
        claim=claims.eight_bit,
        implementation="int8.Int8",
    ),
    Method(
        name="int4",
        title="INT4, one scale per token and head",
        summary="4-bit integers after a random rotation, a quarter of fp16",
        explanation="""\
Keys and values are first turned by a random rotation (signs flipped, then a Hadamard transform),
which spreads single large channels over all of them; queries are turned alike, so attention is
unchanged. Then each token's head is stored as 16 levels between its minimum and maximum.
It takes about a quarter of fp16. 4 bits per token are coarse: long chains of reasoning and
retrieval from long prompts are where to look for damage. rotate=0 leaves the rotation out and
shows what it is good for.""",
        paper="vLLM int4 per-token-head; Ashkboos et al. 2024, QuaRot, arXiv 2404.00456",
        keeps_exact="nothing",
        claim=claims.four_bit,
        implementation="int4.Int4",
        error_limit=0.5,
        options=(MethodOption("rotate", 1, "1: rotate before rounding; 0: do not", 0, 1),),
    ),
    *(
        Method(
            name=f"kivi-{bits}",
            title=f"KIVI, {bits} bit",
            summary=f"{bits}-bit keys per channel and values per token, newest tokens in full",
            explanation=f"""\
Keys have a few channels that are large in every token, values do not. KIVI therefore rounds keys
along each channel (32 tokens of one channel share a scale and a minimum) and values along each
token (32 channels share them), both to {bits} bits.
The newest tokens stay in full precision: always the last 128 values, and the keys since the last
full block of 128. Short prompts are thus hardly compressed at all; the saving comes with length.
The keys are those after the rotary embedding. A long prompt is read in chunks: within a chunk
attention is exact, earlier chunks are read as stored.
The authors advise 2 bits for models whose every head has keys of its own and 4 bits for those
that share keys between query heads (GQA), as most do today.""",
            paper="Liu et al. 2024, KIVI, arXiv 2402.02750",
            keeps_exact="last 128 values; keys since the last multiple of 128",
            claim=claims.kivi(bits),
            implementation="kivi.Kivi",
            error_limit=limit,
            options=KIVI_OPTIONS,
            fixed=MappingProxyType({"bits": bits}),
            check=_whole_groups,
        )
        for bits, limit in ((4, 0.5), (2, 0.9))
    ),
    *(
        Method(
            name=f"gear-{bits}",
            title=f"GEAR, {bits} bit",
            summary=f"{bits}-bit numbers, plus outliers and a low-rank repair of the error",
            explanation=f"""\
Three parts together: a few outliers (the largest and smallest numbers of each channel of the
keys and of each token of the values) are kept exactly; the rest is rounded to {bits} bits in groups of
64; and the rounding error is approximated by a low-rank matrix, two thin factors that are
multiplied into the attention again.
Blocks of 64 tokens are compressed together, each with its own factors; the newest tokens, up to
63, stay in full precision until their block is full. Rank 4 in the prompt, 2 while decoding.
Factors and outliers cost memory, so that GEAR is larger than KIVI at the same bits, and their
arithmetic costs time: look at both before you judge its accuracy.""",
            paper="Kang et al. 2024, GEAR, arXiv 2403.05527",
            keeps_exact="outliers (2 %) and the newest tokens of an unfinished block",
            claim=claims.gear(bits),
            implementation="gear.Gear",
            error_limit=limit,
            options=GEAR_OPTIONS,
            fixed=MappingProxyType({"bits": bits}),
            check=_whole_groups,
        )
        for bits, limit in ((4, 0.5), (2, 0.9))
    ),
    *(
        Method(
            name=name,
            title=f"LeanKV's {level} precision for every token",
            summary=f"{keys}-bit keys and {values}-bit values, {share} of fp16",
            explanation=f"""\
Keys matter more than values: an error in a key moves the attention itself, an error in a value
only what is read there. So keys get {keys} bits and values {values}. Each token's head is rounded
between minimum and maximum, {groups}.
It is the {level} one of LeanKV's two precisions, given to every token: nothing is judged, nothing is
forgotten, and what it costs in answers shows what the precision alone does in leankv.""",
            paper="Zhang et al. 2024, LeanKV / DiffKV, arXiv 2412.03131",
            keeps_exact="nothing",
            claim=claims.grouped(keys, values, sides),
            implementation="lean_tokens.LeanTokens",
            error_limit=limit,
            fixed=MappingProxyType({"high": int(level == "high")}),
        )
        for name, level, keys, values, sides, share, groups, limit in (
            ("k8v4", "high", 8, 4, 3, "two fifths", "a value in two halves", 0.5),
            ("k4v2", "low", 4, 2, 6, "a quarter", "a key in two halves and a value in four quarters", 0.7),
        )
    ),
    Method(
        name="streamingllm",
        title="StreamingLLM",
        summary="the first tokens and a sliding window, nothing between",
        explanation="""\
Every token sees the first 4 tokens (the attention sinks, which models need to put surplus
attention on) and the newest 512, itself included. What lies between is forgotten and its pages are
freed, so a request never holds more than start + recent tokens however long it runs.
Fluency survives; facts from the middle of a prompt do not. Prompts are read under the same window,
so the answer does not depend on how a prompt is cut into chunks.
Positions stay those of the text: keys are not re-rotated to positions inside the cache as the
paper's code does. Within the length a model was trained for the two hardly differ; beyond it,
the paper's way is the one that keeps working.""",
        paper="Xiao et al. 2023, StreamingLLM, arXiv 2309.17453",
        keeps_exact="first 4 and last 512 tokens",
        claim=claims.sink_window,
        implementation="streamingllm.StreamingLLM",
        error_limit=1.2,
        evicts=True,
        kept=("start", "recent"),
        evicts_generated=True,
        options=(
            MethodOption("start", 4, "first tokens kept", 0),
            MethodOption("recent", 512, "newest tokens kept, the current one included", 1),
        ),
    ),
    Method(
        name="h2o",
        title="H2O, heavy-hitter oracle",
        summary="the newest tokens and those that drew most attention so far",
        explanation="""\
Every token collects the attention it receives, from all tokens of the prompt and from each one
generated. At the end of the prompt, and after every further token, each head keeps the newest
tokens and, up to the budget, those with the highest sums; the lowest is overwritten. Heads
forget different tokens.
A prompt is held in full until it is read; only then does the cache shrink to the budget. The
scores need the attention weights themselves, which costs time in the prompt.
Old tokens had more time to collect attention than new ones: expect it to hold on to the
beginning of the text. What is forgotten never comes back.""",
        paper="Zhang et al. 2023, H2O, arXiv 2306.14048",
        keeps_exact="256 newest tokens and 256 of highest attention, per head",
        claim=claims.scored(1),
        implementation="h2o.H2O",
        error_limit=1.2,
        evicts=True,
        kept=("budget",),
        evicts_generated=True,
        options=(
            MethodOption("budget", 512, "tokens kept per head", 2),
            MethodOption("recent", 256, "newest of them, kept whatever their score", 1),
        ),
        check=_recent_fits,
    ),
    Method(
        name="h2o-block",
        title="H2O, a block of tokens at a time",
        summary="h2o as engines with blocks of memory can run it: 16 tokens go when 16 have come",
        explanation="""\
The same scores and the same choice as h2o, in another rhythm: nothing goes with each token, and
the 16 lowest go together whenever 16 tokens beyond the budget have come. So budget to budget + 15
tokens are kept per head.
Inside vLLM and SGLang h2o has this rhythm, because memory is given back in blocks; here it stands
under a name of its own, so that answers of the engines can be held against each other.""",
        paper="Zhang et al. 2023, H2O, arXiv 2306.14048, evicted by blocks",
        keeps_exact="256 newest tokens and 256 to 271 of highest attention, per head",
        claim=claims.scored(16),
        implementation="h2o.H2O",
        error_limit=1.2,
        evicts=True,
        kept=("budget",),
        evicts_generated=True,
        options=(
            MethodOption("budget", 512, "tokens kept per head", 2),
            MethodOption("recent", 256, "newest of them, kept whatever their score", 1),
        ),
        fixed=MappingProxyType({"every": 16}),
        check=_recent_fits,
    ),
    Method(
        name="h2o-prompt",
        title="H2O, prompts only",
        summary="the prompt's newest tokens and those that drew most attention within it",
        explanation="""\
What many tables call H2O: the attention that all tokens of the prompt pay to each of its tokens is
summed, and at the prompt's end each head keeps the newest tokens and, up to the budget, those with
the highest sums. Nothing is forgotten while the answer is generated, so the cache grows with it.
h2o is the paper's own algorithm, which goes on scoring and evicting with every token. Beside snapkv
it shows what judging by the end of the prompt alone is worth: here the first tokens, which all
others saw, have had the most time to collect attention.""",
        paper="Zhang et al. 2023, H2O, arXiv 2306.14048, as in KVCache-Factory",
        keeps_exact="256 newest prompt tokens and 256 of highest attention, per head, everything generated",
        claim=claims.scored(0),
        implementation="h2o_prompt.H2OPrompt",
        error_limit=1.2,
        evicts=True,
        kept=("budget",),
        options=(
            MethodOption("budget", 512, "prompt tokens kept per head", 2),
            MethodOption("recent", 256, "newest of them, kept whatever their score", 1),
        ),
        check=_recent_fits,
    ),
    Method(
        name="snapkv",
        title="SnapKV",
        summary="prompt tokens that the end of the prompt attends to",
        explanation="""\
When a prompt has been read, the attention that its last 32 tokens pay to each earlier token is
summed, smoothed over 5 neighbours and averaged over the query heads that share a key. Each head
keeps the prompt tokens with the highest sums, up to the budget, and the last 32.
It acts once per prompt: what is generated afterwards is kept in full, so the cache grows again
with the answer. Prompts shorter than the budget are not touched.
It works well when the question stands at the end of the prompt, and poorly when a later turn
asks for something the first question did not point at.""",
        paper="Li et al. 2024, SnapKV, arXiv 2404.14469",
        keeps_exact="1024 prompt tokens per head, everything generated",
        claim=claims.scored(0),
        implementation="snapkv.SnapKV",
        error_limit=1.2,
        evicts=True,
        kept=("budget",),
        options=(
            MethodOption("budget", 1024, "prompt tokens kept per head, the window included", 2),
            MethodOption("window", 32, "last prompt tokens whose attention decides", 1),
            MethodOption("kernel", 5, "width of the smoothing, odd", 1, 63),
        ),
        check=lambda options: (
            _recent_fits(options) or (None if options["kernel"] % 2 else f"kernel ({options['kernel']}) must be odd")
        ),
    ),
    Method(
        name="leankv",
        title="LeanKV (DiffKV)",
        summary="8/4-bit, 4/2-bit or forgotten, by each token's significance in each head",
        explanation="""\
Each token is stored, separately in every head, at one of three levels: 8-bit key and 4-bit value,
4-bit key and 2-bit value, or not at all. What decides is the attention it received on average,
relative to an even share 1/N: below low/N it is forgotten, below high/N it gets the low
precision. The newest 64 tokens always have the high one.
At the end of the prompt the last 64 queries decide; while decoding, each new token may push the
least significant older one down a level. Heads end up with different lengths, and the pages of
a head that needs few are free for other requests at once.
Good thresholds depend on the model: (0.02, 1.0) is the authors' choice for Llama-3-8B, (0.04, 0.04)
for Qwen2.5-7B, (0, 3) for QwQ-32B. How much memory is saved depends on the text.""",
        paper="Zhang et al. 2024, LeanKV / DiffKV, arXiv 2412.03131",
        keeps_exact="nothing (newest 64 tokens at 8/4 bit)",
        claim=claims.leankv,
        implementation="leankv.LeanKV",
        error_limit=1.2,
        evicts=True,
        at_most=True,
        options=(
            MethodOption("low", 0.02, "forgotten below this multiple of 1/N", 0.0),
            MethodOption("high", 1.0, "low precision below this multiple of 1/N", 0.0),
            MethodOption("buffer", 64, "newest tokens that keep the high precision; queries that judge a prompt", 1),
        ),
        check=_ordered_thresholds,
    ),
)

ENTRY_POINTS = "kvload.methods"
"""Entry-point group in which an installed package names a method of its own: ``name = module:METHOD``, a row."""


def _installed() -> Iterator[Method]:
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            row = point.load()
        except Exception as error:  # whatever somebody else's package raises
            logger.warning("the method '%s' (%s) cannot be loaded: %s", point.name, point.value, error)
            continue
        if isinstance(row, Method):
            yield row
        else:
            logger.warning("the method '%s' (%s) is no row of the catalogue", point.name, point.value)


_OWN = {row.name: row for row in _ROWS}

METHODS: Mapping[str, Method] = MappingProxyType(_OWN | {row.name: row for row in _installed() if row.name not in _OWN})
"""Every method of the embedded engine, by name: kvload's own, then those of installed packages."""
