"""A server that computes nothing: the scheduler and the page account of the real engine under a model of step times."""
