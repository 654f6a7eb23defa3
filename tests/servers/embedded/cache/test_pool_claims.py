"""What the engine's pools really hold against what the launcher's verification expects of them, for every method."""

import pytest
import torch

from kvload.servers.catalogue.asked import parse_method
from kvload.servers.catalogue.claims import Stored
from kvload.servers.catalogue.methods import METHODS
from kvload.servers.embedded.cache import build_cache
from kvload.servers.embedded.cache.api import CacheGeometry
from kvload.servers.engines.embedded.adapter import POOL_CLAIM_TOKENS
from kvload.servers.verification.verdict import POOL_TOLERANCE


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_pool_holds_the_tokens_its_method_claims(name: str, head_dim: int) -> None:
    geometry = CacheGeometry(2, 4, 2, head_dim, torch.bfloat16, torch.device("cpu"))
    spec = parse_method(name)
    plain = build_cache(geometry, parse_method("none"), 32 * 2**20).pool_tokens
    tokens = 1 if METHODS[name].evicts else POOL_CLAIM_TOKENS
    claim = METHODS[name].claim(Stored(tokens, head_dim, 2, spec.options))
    ratio = build_cache(geometry, spec, 32 * 2**20).pool_tokens / plain
    assert ratio == pytest.approx(2 * head_dim * 2 / claim, rel=POOL_TOLERANCE)
