"""The kernel sets in torch: what is right, for every structure, method and device."""
