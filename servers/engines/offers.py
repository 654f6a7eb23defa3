"""Which engine offers which method, gathered from the catalogue and the engines' settings."""

from collections.abc import Mapping
from dataclasses import dataclass

from kvload.servers.catalogue.claims import Stored
from kvload.servers.catalogue.methods import METHODS, Method
from kvload.servers.engines.settings import Setting
from kvload.servers.engines.sglang.settings import SETTINGS as SGLANG_SETTINGS
from kvload.servers.engines.vllm.settings import SETTINGS as VLLM_SETTINGS

CLAIM_TOKENS = 8192
CLAIM_HEAD_DIM = 128

_SETTINGS: Mapping[str, Mapping[str, Setting]] = {"vllm": VLLM_SETTINGS, "sglang": SGLANG_SETTINGS}


@dataclass(frozen=True)
class Offer:
    """A method of one engine.

    Attributes:
        engine: ``embedded``, ``vllm`` or ``sglang``.
        setting: how the engine calls it; its own name for the embedded engine.
        bytes_per_token: per layer and KV head, in a sequence of 8192 tokens at head size 128 in 16-bit precision.
        note: what else is known.
    """

    engine: str
    setting: str
    bytes_per_token: float
    note: str = ""


@dataclass(frozen=True)
class Listed:
    """A method with all its offers; ``method`` is None where only engines other than the embedded one have it."""

    name: str
    method: Method | None
    offers: tuple[Offer, ...]


def listed() -> list[Listed]:
    """All methods: the catalogue's in its order, then those only other engines have."""
    names = list(METHODS) + [name for settings in _SETTINGS.values() for name in settings if name not in METHODS]
    return [Listed(name, METHODS.get(name), tuple(_offers(name))) for name in dict.fromkeys(names)]


def uncompressed_bytes() -> float:
    """Bytes per token, layer and KV head at the same head size without compression."""
    return 2.0 * CLAIM_HEAD_DIM * 2


def _offers(name: str) -> list[Offer]:
    found = []
    method = METHODS.get(name)
    if method is not None:
        options = {option.name: option.default for option in method.options}
        found.append(Offer("embedded", name, method.claim(Stored(CLAIM_TOKENS, CLAIM_HEAD_DIM, 2, options))))
    for engine, settings in _SETTINGS.items():
        setting = settings.get(name)
        if setting is not None:
            claim = setting.bytes_per_token
            size = uncompressed_bytes() if claim is None else claim(CLAIM_HEAD_DIM)
            found.append(Offer(engine, f"--kv-cache-dtype {setting.dtype}", size, setting.note))
    return found
