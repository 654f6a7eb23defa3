"""The arithmetic of the cache: page layouts, packing of numbers, attention over blocks of keys and values."""
