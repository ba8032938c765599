"""Programs of GGUF decoders that are known from the file's header, without a capture."""
