"""What several runs of one trace say beside each other."""
