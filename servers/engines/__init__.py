"""The engines kvload can launch, one adapter each, and the cache settings each of them offers."""
