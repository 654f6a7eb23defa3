"""Where a model comes from: a folder, a GGUF file that is converted first, or a name of the Hugging Face hub."""

import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from kvload.config import cache_dir
from kvload.errors import UsageError
from kvload.servers.gguf.convert import folder_of
from kvload.servers.host import model_facts
from kvload.servers.host.model_facts import ModelFacts

HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 8.0
TRUE = frozenset({"1", "true", "yes", "on"})


def locate(
    model: str, env: Mapping[str, str], on_progress: Callable[[str], None], *, engine_reads_gguf: bool = False
) -> ModelFacts:
    """Describe a model and make sure that an engine can come by it.

    Args:
        model: as the user named it.
        env: variables the engine will run with.
        on_progress: told what takes a while.
        engine_reads_gguf: whether the engine may be given a GGUF file that cannot be converted.

    Raises:
        UsageError: there is no such model, it cannot be converted, or it is neither in the hub's cache nor can the hub
            be reached.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        return _from_gguf(path, on_progress, engine_reads_gguf)
    facts = model_facts.read(model)
    if facts.folder is None:
        check_hub(model, env)
    return facts


def _from_gguf(path: Path, on_progress: Callable[[str], None], engine_reads_gguf: bool) -> ModelFacts:
    if not path.is_file():
        raise UsageError("there is no such file", where=str(path), hint="give a .gguf file, or a model's folder")
    try:
        return model_facts.read(str(folder_of(path, cache_dir() / "models", on_progress)))
    except UsageError as error:
        if not engine_reads_gguf:
            raise
        on_progress(f"{error.message}; the engine reads the file itself")
        return ModelFacts(str(path.absolute()))


def check_hub(name: str, env: Mapping[str, str]) -> None:
    """Refuse a name that cannot be fetched, at once: engines try for a minute before they say so.

    Raises:
        UsageError: the hub cannot be reached, or has no such model for this user.
    """
    unknown = f"there is no folder '{name}', and the Hugging Face cache on this machine has no model of that name"
    if any(env.get(variable, "").lower() in TRUE for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")):
        raise UsageError(unknown, where=name, hint="HF_HUB_OFFLINE keeps it from being fetched; give a model's folder")
    base = (env.get("HF_ENDPOINT") or HUB).rstrip("/")
    if not base.startswith(("http://", "https://")):
        raise UsageError(f"HF_ENDPOINT is no address: {base}", where="HF_ENDPOINT")
    headers = {"User-Agent": "kvload"}
    if token := env.get("HF_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    url = f"{base}/{urllib.parse.quote(name)}/resolve/main/config.json"
    asked = urllib.request.Request(url, method="HEAD", headers=headers)  # noqa: S310  http or https
    try:
        urllib.request.urlopen(asked, timeout=HUB_TIMEOUT_S).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 404:
            raise UsageError(
                f"{unknown}, nor has {base}", where=name, hint="is the name spelt as it is there?"
            ) from None
        if error.code in {401, 403}:
            raise UsageError(
                f"{base} gives '{name}' only to those it knows, or has no such model",
                where=name,
                hint="accept its terms there, and set HF_TOKEN",
            ) from None
        # Anything else is the hub's business: the engine asks again, with patience.
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UsageError(
            f"{unknown}; it cannot be fetched either, since {base} cannot be reached ({reason})",
            where=name,
            hint="give a model's folder, or fetch the model on a machine with a network",
        ) from None
