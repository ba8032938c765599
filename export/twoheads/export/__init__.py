"""Engines to ONNX, the bundle writer, verification and the command line."""
