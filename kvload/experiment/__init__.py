"""An experiment: the same trace replayed against several arms, in an order that spreads drift evenly."""
