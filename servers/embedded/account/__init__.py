"""Who holds which pages of the KV cache: numbers only, no storage, so that a simulator can keep the same books."""
