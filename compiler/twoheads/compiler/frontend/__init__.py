"""The two doors through which models come in: torch and ONNX."""
