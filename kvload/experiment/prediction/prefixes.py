"""What the prompts of a load share, from the ids of their blocks."""

from collections.abc import Sequence
from hashlib import file_digest
from pathlib import Path

from kvload.records import RunManifest
from kvload.rundir import RunDir
from kvload.servers.simulator.prefix import Prefix

_FOLDERS_UP = 3
"""So many folders above a run are looked through for its trace."""


def prefixes_of(
    block_ids: Sequence[Sequence[int] | None],
    block_tokens: Sequence[int | None],
    prompt_tokens: Sequence[int],
    *,
    times: int = 1,
) -> list[Prefix] | None:
    """The beginning of each prompt that others have as well, in stretches that the same prompts share.

    A block is the same as another one where its id is and all ids before it are. Blocks that follow each other in the
    same prompts make one stretch; what only one prompt has is left out, since nobody finds it.

    Args:
        block_ids: ids of each prompt's blocks.
        block_tokens: tokens of a block of each.
        prompt_tokens: its length.
        times: how often the load is served, one time after the other.

    Returns:
        for each prompt the number of each stretch and where it ends; None where no prompt has block ids.
    """
    if not any(block_ids):
        return None
    numbers: dict[tuple[int, int, int], int] = {}
    counts: list[int] = [0]
    chains: list[list[int]] = []
    for ids, size, length in zip(block_ids, block_tokens, prompt_tokens, strict=True):
        chain: list[int] = []
        last = 0
        for block in (ids or ())[: -(-length // size)] if size else ():
            last = numbers.setdefault((last, size or 0, block), len(counts))
            if last == len(counts):
                counts.append(0)
            counts[last] += 1
            chain.append(last)
        chains.append(chain)
    found: list[Prefix] = []
    for chain, size, length in zip(chains, block_tokens, prompt_tokens, strict=True):
        prefix: list[tuple[int, int]] = []
        for place, number in enumerate(chain):
            if counts[number] * times < 2:
                break
            ends_here = place + 1 == len(chain) or counts[chain[place + 1]] != counts[number]
            if ends_here:
                prefix.append((number, min(length, (place + 1) * (size or 0))))
        found.append(tuple(prefix))
    return found


def blocks_of_run(run: RunDir, manifest: RunManifest) -> dict[str, tuple[list[int], int]]:
    """Block ids, and tokens of a block, by the id of the request: from the run's trace, if it lies beside the run.

    It is looked for by its name in the run folder, in the folders above and in the current one, and taken if it is the
    file that was replayed, byte by byte. Empty where it is not there, or has no block ids.
    """
    from kvload.workloads.traces.formats import read_trace

    name = Path(manifest.trace.path).name
    folder = run.path.resolve()
    for place in dict.fromkeys([folder, *list(folder.parents)[:_FOLDERS_UP], Path.cwd()]):
        path = place / name
        if name and path.is_file() and _is(path, manifest.trace.sha256):
            requests = read_trace(path, manifest.trace.format)
            return {one.id: (one.block_ids, one.block_size) for one in requests if one.block_ids and one.block_size}
    return {}


def _is(path: Path, sha256: str) -> bool:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest() == sha256
