"""Methods that kvload's plugin brings into vLLM: how vLLM is started with them, and what they do not go with."""

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
from kvload.servers.plugins.injection import plugin_folder
from kvload.servers.plugins.vllm import contract, selection
from kvload.servers.plugins.vllm.eviction.policy import PAGE_ALIGNMENT, build
from kvload.servers.plugins.vllm.selection import Selection
from kvload.servers.plugins.vllm.table import ROWS

BLOCK_TOKENS = 16
PROOF_BLOCKS = 8
"""Whole blocks that a request made to prove eviction has to lose."""
SCORED_TOKENS = 800
"""No text that verification scores is longer; a budget above it changes nothing of them."""
UNTOUCHED_LIMIT = 0.1
"""Most of the context's effect that may be lost where nothing is evicted: what two runs of one server differ by."""

NOT_WITH = {
    "--enable-prefix-caching": "compaction rewrites blocks that other requests would share",
    "--speculative-config": "tokens that are rejected later cannot be taken back",
    "--kv-transfer-config": "compacted blocks mean nothing to another server",
    "--kv-offloading-size": "compacted blocks mean nothing elsewhere",
    "--decode-context-parallel-size": "a request's blocks would lie on several GPUs",
    "-dcp": "a request's blocks would lie on several GPUs",
    "--prefill-context-parallel-size": "a request's blocks would lie on several GPUs",
    "-pcp": "a request's blocks would lie on several GPUs",
    "--pipeline-parallel-size": "it was never tried",
    "-pp": "it was never tried",
    "--enable-dbo": "a batch is cut in two",
    "--attention-backend": "the method is one itself",
    "--kv-cache-dtype": "the cache keeps the model's precision",
}
"""Arguments of vLLM that a method of eviction does not go with, and why."""

PACKED_NOT_WITH = {
    "--speculative-config": "pages could hold tokens that are rejected later",
    "--kv-transfer-config": "nobody else reads these pages",
    **{flag: NOT_WITH[flag] for flag in ("--decode-context-parallel-size", "-dcp", "--prefill-context-parallel-size")},
    **{flag: NOT_WITH[flag] for flag in ("-pcp", "--pipeline-parallel-size", "-pp", "--enable-dbo")},
    "--attention-backend": "the method is one itself",
    "--kv-cache-dtype": "the method packs the cache itself",
}
"""The same for a method that packs pages."""


def block_tokens(method: str) -> int:
    """The block size of vLLM that a method of the plugin runs with."""
    return ROWS[method].block_tokens[0]


def refuse_arguments(method: MethodSpec, arguments: tuple[str, ...]) -> None:
    """Refuse what the method does not go with, before anything is started.

    Raises:
        UsageError: names the argument and the reason.
    """
    for flag, reason in (PACKED_NOT_WITH if packed.is_packed(method.name) else NOT_WITH).items():
        if has_flag(arguments, flag):
            raise UsageError(
                f"{method.name} in vLLM does not go with {flag}: {reason}",
                where=f"--method {method}",
                hint=f"leave out {flag}",
            )
    block = flag_value(arguments, "--block-size")
    if block not in {None, str(block_tokens(method.name))}:
        raise UsageError(
            f"{method.name} in vLLM runs with blocks of {block_tokens(method.name)} tokens, not {block}",
            where="--block-size",
            hint="leave it out",
        )


def obstacle(method: str, build: Build) -> str | None:
    """Why the plugin cannot run in an installed vLLM; None where nothing is known against it."""
    if build.release and build.release[:2] not in contract.KNOWN:
        return f"kvload's {method} runs inside vLLM {contract.known()}; {build.version} is installed"
    row = ROWS.get(method)
    if row is None or (row.cpu if build.device == "cpu" else row.gpu) is None:
        return f"kvload has no {method} for vLLM on a {'CPU' if build.device == 'cpu' else 'GPU'}"
    return None


def planned(
    plan: LaunchPlan, request: LaunchRequest, method: MethodSpec, build: Build, model: ModelFacts
) -> tuple[LaunchPlan, tuple[str, ...]]:
    """A plan with what the plugin needs, and the arguments to add to vLLM's.

    Args:
        plan: with all that does not depend on the method.
        method: that of the request.

    Raises:
        UsageError: the method does not go with an argument, or its options do not go together.
    """
    refuse_arguments(method, request.engine_args)
    arguments = list(conditions(method.name, request.engine_args))
    if build.device != "cpu":  # on a CPU vLLM takes what stands for its one backend
        arguments += ["--attention-backend", "CUSTOM"]
    environment = environment_of(method, {**os.environ, **request.env})
    plan = replace(plan, env={**plan.env, **environment})
    if packed.is_packed(method.name):
        return packed.claimed(plan, method, request, build, model), tuple(arguments)
    return claimed(plan, method, request, model), tuple(arguments)


def conditions(method: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    """How the cache is organised under a method of the plugin, less what is among the arguments already."""
    blocks = () if has_flag(arguments, "--block-size") else ("--block-size", str(block_tokens(method)))
    if packed.is_packed(method):
        return blocks
    sharing = () if has_flag(arguments, "--no-enable-prefix-caching") else ("--no-enable-prefix-caching",)
    return (*blocks, *sharing)


def environment_of(method: MethodSpec, env: Mapping[str, str]) -> dict[str, str]:
    """Variables that bring the plugin and its method into vLLM's processes.

    Args:
        env: what vLLM would be started with otherwise.
    """
    paths = [str(plugin_folder(state_dir())), *filter(None, [env.get("PYTHONPATH")])]
    plugins = [name for name in env.get("VLLM_PLUGINS", "").split(",") if name and name != "kvload"]
    return {
        selection.VARIABLE: selection.write(Selection(method.name, method.options)),
        "PYTHONPATH": os.pathsep.join(paths),
        "VLLM_PLUGINS": ",".join(["kvload", *plugins]),
    }


def claimed(plan: LaunchPlan, method: MethodSpec, request: LaunchRequest, model: ModelFacts) -> LaunchPlan:
    """What a method that evicts holds of a long request, what its pages take, and how it is made to show it."""
    known = METHODS[method.name]
    if not known.evicts:
        return plan
    policy = build(Selection(method.name, method.options), BLOCK_TOKENS)
    kept = policy.most_kept or policy.start + (policy.sight or 0)
    prompt = -(-kept // BLOCK_TOKENS) * BLOCK_TOKENS + (PROOF_BLOCKS + 1) * BLOCK_TOKENS
    freed = int(policy.first_kept(prompt, prompt)) - policy.start_blocks
    plan = replace(
        plan,
        compresses=False,
        error_limit=UNTOUCHED_LIMIT if kept >= SCORED_TOKENS else known.error_limit,
        eviction=EvictionProof(prompt, freed, prompt - freed * BLOCK_TOKENS),
    )
    if model.layers is None or model.kv_heads is None or model.head_size is None:
        return plan
    element = element_bytes(flag_value(request.engine_args, "--dtype"), model)
    plain = 2.0 * model.head_size * element
    page = BLOCK_TOKENS * model.kv_heads * plain
    if policy.scores:
        page = -(-(page + 4 * BLOCK_TOKENS * model.kv_heads) // PAGE_ALIGNMENT) * PAGE_ALIGNMENT
    heads = model.layers * model.kv_heads
    held = known.claim(Stored(CLAIM_TOKENS, model.head_size, element, method.options))
    return replace(
        plan,
        claim=Claim(heads * held, heads * plain),
        pool_claim=Claim(model.layers * page / BLOCK_TOKENS, heads * plain),
    )
