"""All that is known of vLLM."""
