"""Rewrites of an ONNX graph before attention is looked for."""
