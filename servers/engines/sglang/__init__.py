"""All that is known of SGLang."""
