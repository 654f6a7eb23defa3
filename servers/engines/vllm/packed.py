"""Packed pages in vLLM, as kvload's plugin brings them: what they take, and what they refuse."""

from dataclasses import replace

from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec
from kvload.servers.catalogue.claims import CLAIM_TOKENS
from kvload.servers.engines.arguments import flag_value
from kvload.servers.engines.base import Build, Claim, LaunchPlan, LaunchRequest
from kvload.servers.engines.settings import element_bytes
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.kernels.formats import PACKED_METHODS, PAGE_TOKENS, PageFormat, page_format

SLOTS_FLAG = "--max-num-seqs"


def token_bytes(method: str, head_size: int) -> float:
    """Bytes of a token, layer and KV head: its share of a page, and of the window's ring, over a long sequence."""
    fmt = page_format(method, head_size)
    return fmt.token_bytes + fmt.ring_bytes() / CLAIM_TOKENS


def format_of(method: MethodSpec, model: ModelFacts, engine: str = "vLLM") -> PageFormat | None:
    """The pages of a method for a model; None where the model's head size is not known.

    Args:
        engine: for what is said where there are none.

    Raises:
        UsageError: it has none at this head size, or its options are not those of the pages.
    """
    taken = {"rotate"} if method.name == "int4" else set()
    foreign = [name for name in method.options if name not in taken]
    published = {"group": 32, "residual": 128}
    if any(method.options[name] != published.get(name) for name in foreign):
        raise UsageError(
            f"{method.name} in {engine} takes no option {', '.join(foreign)}: "
            f"a page of {PAGE_TOKENS} tokens is a group",
            where=f"--method {method}",
            hint=f"--method {method.name}",
        )
    if model.head_size is None:
        return None
    try:
        return page_format(method.name, model.head_size)
    except ValueError as error:
        raise UsageError(f"{method.name} in {engine}: {error}", where=f"--method {method}") from None


def claimed(
    plan: LaunchPlan, method: MethodSpec, request: LaunchRequest, build: Build, model: ModelFacts
) -> LaunchPlan:
    """A plan with the bytes of pages and of rings.

    Raises:
        UsageError: the method's window is a ring for each of vLLM's request slots, and their number is left to vLLM.
    """
    fmt = format_of(method, model)
    if fmt is None or model.layers is None or model.kv_heads is None:
        return plan
    element = element_bytes(flag_value(request.engine_args, "--dtype"), model)
    heads = model.layers * model.kv_heads
    plain = heads * 2.0 * fmt.head_size * element
    plan = replace(plan, claim=Claim(heads * (fmt.token_bytes + fmt.ring_bytes(element) / CLAIM_TOKENS), plain))
    pages = heads * fmt.token_bytes
    if not fmt.window or build.device == "cpu":
        return replace(plan, pool_claim=Claim(pages, plain))
    slots = flag_value(request.engine_args, SLOTS_FLAG)
    ring = heads * fmt.ring_bytes(element)
    if slots is None or not slots.isdigit():
        raise UsageError(
            f"{method.name} keeps the newest tokens of each of vLLM's request slots in full precision, "
            f"{ring / 2**20:.1f} MiB a slot: say how many requests may run at once",
            where=f"--method {method}",
            hint=f"--engine-arg={SLOTS_FLAG}=64, for all arms of a comparison",
        )
    rings = (int(slots) + 1) * ring
    if request.kv_memory is None:
        return plan
    if rings >= request.kv_memory:
        raise UsageError(
            f"{method.name}'s window takes {rings / 2**30:.2f} GiB for {slots} requests at once, more than the cache",
            where=SLOTS_FLAG,
            hint="fewer requests at once, or more --kv-memory",
        )
    # The rings come off the pool.
    return replace(plan, pool_claim=Claim(pages * request.kv_memory / (request.kv_memory - rings), plain))


def is_packed(method: str) -> bool:
    """Whether a method of the plugin packs pages."""
    return method in PACKED_METHODS
