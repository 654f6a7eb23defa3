"""How the probe model is trained, exported and evaluated."""
