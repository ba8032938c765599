"""The ONNX door: a file becomes a source graph."""
