"""An ONNX file in memory: nodes, weights, and a way to run it."""
