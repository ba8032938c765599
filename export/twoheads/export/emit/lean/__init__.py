"""Rewrites of an engine of one row into few nodes, with operators of ONNX Runtime's own."""
