"""All that is known of the embedded engine from outside."""
