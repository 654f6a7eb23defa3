"""GGUF files as model folders: read, dequantised, written as safetensors with a tokenizer for transformers."""
