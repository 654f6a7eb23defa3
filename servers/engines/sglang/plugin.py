"""Methods that kvload's plugin brings into SGLang: how SGLang is started with them, and what they do not go with."""

import math
import os
from collections.abc import Mapping
from dataclasses import replace

from kvload.config import state_dir
from kvload.errors import UsageError
from kvload.servers.catalogue.asked import MethodSpec
from kvload.servers.catalogue.claims import CLAIM_TOKENS, Stored
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.engines.arguments import flag_value, has_flag
from kvload.servers.engines.base import Build, Claim, EvictionProof, LaunchPlan, LaunchRequest
from kvload.servers.engines.settings import element_bytes
from kvload.servers.engines.vllm import packed
from kvload.servers.host.model_facts import ModelFacts
from kvload.servers.kernels.formats import page_format
from kvload.servers.plugins.injection import plugin_folder
from kvload.servers.plugins.sglang import contract, selection
from kvload.servers.plugins.sglang.eviction.policy import leading, policy_of
from kvload.servers.plugins.sglang.selection import BACKEND
from kvload.servers.plugins.sglang.table import ROWS
from kvload.servers.plugins.vllm.contract import ContractError
from kvload.servers.plugins.vllm.selection import Selection, write

PROOF_TOKENS = 128
"""Tokens that a request made to prove eviction has to lose."""
SCORE_BYTES = 4
"""Of a slot in each layer and KV head, beside keys and values."""
SLOTS_FLAG = "--max-running-requests"

NOT_WITH = {
    "--speculative-algorithm": "tokens that are rejected later cannot be taken back",
    "--disaggregation-mode": "these slots mean nothing to another server",
    "--enable-dp-attention": "it was never tried",
    "--dp-size": "it was never tried",
    "--dp": "it was never tried",
    "--data-parallel-size": "it was never tried",
    "--pp-size": "it was never tried",
    "--pp": "it was never tried",
    "--pipeline-parallel-size": "it was never tried",
    "--dcp-size": "a request's slots would lie on several GPUs",
    "--enable-mixed-chunk": "prompts and generated tokens are told apart by their batch",
    "--enable-two-batch-overlap": "a batch is cut in two",
    "--enable-pdmux": "two batches run at once",
    "--enable-hierarchical-cache": "slots are copied out as keys and values",
    "--enable-lmcache": "slots are copied out as keys and values",
    "--enable-hisparse": "it is another method",
    "--enable-streaming-session": "a prompt would grow after it is read",
    "--strip-thinking-cache": "slots would be freed twice",
    "--enable-page-major-kv-layout": "kernels expect one layer's slots side by side",
    "--attention-backend": "the method is one itself",
    "--decode-attention-backend": "the method is one itself",
    "--prefill-attention-backend": "the method is one itself",
    "--radix-cache-backend": "the method brings its own",
    "--kv-cache-dtype": "the method decides what is stored",
}
"""Arguments of SGLang that no method of the plugin goes with, and why."""


def brings(method: object) -> bool:
    """Whether the plugin brings a method into SGLang."""
    return isinstance(method, MethodSpec) and method.name in ROWS


def evicts(method: str) -> bool:
    """Whether a method of the plugin drops tokens."""
    return not packed.is_packed(method)


def shares_no_prefixes(method: str) -> bool:
    """Whether a method runs without SGLang's prefix cache: compaction rewrites slots, rings are nobody else's."""
    return evicts(method) or page_format(method, 128).window


def obstacle(method: str, build: Build) -> str | None:
    """Why the plugin cannot run in an installed SGLang; None where nothing is known against it."""
    if build.release and tuple(build.release[:3]) not in contract.KNOWN:
        return f"kvload's {method} runs inside SGLang {contract.known()}; {build.version} is installed"
    return None


def refuse_arguments(method: MethodSpec, arguments: tuple[str, ...]) -> None:
    """Refuse what the method does not go with, before anything is started.

    Raises:
        UsageError: names the argument and the reason.
    """
    for flag, reason in NOT_WITH.items():
        if has_flag(arguments, flag):
            raise UsageError(
                f"{method.name} in SGLang does not go with {flag}: {reason}",
                where=f"--method {method}",
                hint=f"leave out {flag}",
            )
    page = ROWS[method.name].page_tokens
    given = flag_value(arguments, "--page-size")
    if given not in {None, str(page)}:
        raise UsageError(
            f"{method.name} in SGLang runs with pages of {page} tokens, not {given}",
            where="--page-size",
            hint="leave it out",
        )
    if flag_value(arguments, "--chunked-prefill-size") in {"-1", "0"}:
        raise UsageError(
            f"{method.name} in SGLang needs prompts to be read in chunks",
            where="--chunked-prefill-size",
            hint="leave it out",
        )


def sharing_arguments(method: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """How prefixes are shared under a method, for all arms; less what is among the arguments already."""
    flag = "--disable-radix-cache"
    return (flag,) if shares_no_prefixes(method) and not has_flag(arguments, flag) else ()


def planned(
    plan: LaunchPlan, request: LaunchRequest, method: MethodSpec, model: ModelFacts
) -> tuple[LaunchPlan, tuple[str, ...]]:
    """A plan with what the plugin needs, and the arguments to add to SGLang's.

    Args:
        plan: with all that does not depend on the method.
        method: that of the request.

    Raises:
        UsageError: the method does not go with an argument, or its options do not go together.
    """
    refuse_arguments(method, request.engine_args)
    arguments = ["--attention-backend", BACKEND, *sharing_arguments(method.name, request.engine_args)]
    if not has_flag(request.engine_args, "--page-size"):
        arguments += ["--page-size", str(ROWS[method.name].page_tokens)]
    if evicts(method.name):
        arguments += ["--radix-cache-backend", BACKEND]
    plan = replace(plan, env={**plan.env, **environment_of(method, {**os.environ, **request.env})})
    sized, pool_tokens = (
        _evicting(plan, method, request, model) if evicts(method.name) else _packing(plan, method, request, model)
    )
    if request.kv_memory is not None and not has_flag(request.engine_args, "--max-total-tokens"):
        if pool_tokens is None:
            raise UsageError(
                "SGLang takes the size of its cache in tokens, and the model's shape is not known",
                where="--kv-memory",
                hint="give --max-total-tokens or --mem-fraction-static after --",
            )
        arguments += ["--max-total-tokens", str(pool_tokens)]
    return sized, tuple(arguments)


def environment_of(method: MethodSpec, env: Mapping[str, str]) -> dict[str, str]:
    """Variables that bring the plugin and its method into SGLang's processes.

    Args:
        env: what SGLang would be started with otherwise.
    """
    paths = [str(plugin_folder(state_dir())), *filter(None, [env.get("PYTHONPATH")])]
    plugins = [name for name in env.get("SGLANG_PLUGINS", "").split(",") if name and name != "kvload"]
    return {
        selection.VARIABLE: write(Selection(method.name, method.options)),
        "PYTHONPATH": os.pathsep.join(paths),
        "SGLANG_PLUGINS": ",".join(["kvload", *plugins]),
    }


def _evicting(
    plan: LaunchPlan, method: MethodSpec, request: LaunchRequest, model: ModelFacts
) -> tuple[LaunchPlan, int | None]:
    """What a method that evicts holds of a long request, how it is made to show it, and the pool's tokens."""
    known = METHODS[method.name]
    try:
        policy = policy_of(Selection(method.name, method.options))
    except ContractError as error:
        raise UsageError(str(error), where=f"--method {method}") from None
    kept = policy.most_kept or policy.start + (policy.sight or 0)
    prompt = kept + PROOF_TOKENS + policy.block
    freed = leading(policy, prompt, prompt) - policy.start
    plan = replace(
        plan,
        compresses=False,
        error_limit=known.error_limit,
        eviction=EvictionProof(prompt, freed, prompt - freed),
    )
    if model.layers is None or model.kv_heads is None or model.head_size is None:
        return plan, None
    element = element_bytes(flag_value(request.engine_args, "--dtype"), model)
    heads = model.layers * model.kv_heads
    plain = heads * 2.0 * model.head_size * element
    held = heads * known.claim(Stored(CLAIM_TOKENS, model.head_size, element, method.options))
    plan = replace(plan, claim=Claim(held, plain), pool_claim=Claim(plain, plain))
    scores = heads * SCORE_BYTES if policy.scores else 0
    return plan, None if request.kv_memory is None else max(1, int(request.kv_memory / (plain + scores)))


def _packing(
    plan: LaunchPlan, method: MethodSpec, request: LaunchRequest, model: ModelFacts
) -> tuple[LaunchPlan, int | None]:
    """The bytes of pages and of rings, and the pool's tokens, in whole pages.

    Raises:
        UsageError: the method's window is a ring for each running request, and their number is left to SGLang.
    """
    fmt = packed.format_of(method, model, "SGLang")
    if fmt is None or model.layers is None or model.kv_heads is None:
        return plan, None
    element = element_bytes(flag_value(request.engine_args, "--dtype"), model)
    heads = model.layers * model.kv_heads
    plain = heads * 2.0 * fmt.head_size * element
    pages = heads * fmt.token_bytes
    claim = Claim(heads * (fmt.token_bytes + fmt.ring_bytes(element) / CLAIM_TOKENS), plain)
    plan = replace(plan, claim=claim, pool_claim=Claim(pages, plain))
    room = request.kv_memory
    if fmt.window:
        slots = flag_value(request.engine_args, SLOTS_FLAG)
        ring = heads * fmt.ring_bytes(element)
        if slots is None or not slots.isdigit():
            raise UsageError(
                f"{method.name} keeps the newest tokens of each running request in full precision, "
                f"{ring / 2**20:.1f} MiB a request: say how many may run at once",
                where=f"--method {method}",
                hint=f"--engine-arg={SLOTS_FLAG}=64, for all arms of a comparison",
            )
        rings = (int(slots) + 1) * ring
        if room is not None and rings >= room:
            raise UsageError(
                f"{method.name}'s window takes {rings / 2**30:.2f} GiB for {slots} requests, more than the cache",
                where=SLOTS_FLAG,
                hint="fewer requests at once, or more --kv-memory",
            )
        room = None if room is None else room - rings
    if room is None:
        return plan, None
    page = ROWS[method.name].page_tokens
    return plan, max(page, math.floor(room / pages) // page * page)
