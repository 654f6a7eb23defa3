"""Which engine offers which method, gathered from the catalogue and the engines' adapters."""

from dataclasses import dataclass

from kvload.servers.catalogue.claims import CLAIM_HEAD_DIM
from kvload.servers.catalogue.methods import METHODS, Method
from kvload.servers.engines.base import Offer, adapters


@dataclass(frozen=True)
class Listed:
    """A method with all its offers; ``method`` is None where only engines other than the embedded one have it."""

    name: str
    method: Method | None
    offers: tuple[Offer, ...]


def listed() -> list[Listed]:
    """All methods: the catalogue's in its order, then those only other engines have."""
    by_engine = [made.offers() for made in adapters()]
    names = list(METHODS) + [name for offers in by_engine for name in offers]
    return [
        Listed(name, METHODS.get(name), tuple(offers[name] for offers in by_engine if name in offers))
        for name in dict.fromkeys(names)
    ]


def uncompressed_bytes() -> float:
    """Bytes per token, layer and KV head at :data:`CLAIM_HEAD_DIM` without compression."""
    return 2.0 * CLAIM_HEAD_DIM * 2
