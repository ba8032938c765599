"""The engines of scans as ONNX: one module for each form of mathematics, and the graph that they build."""
