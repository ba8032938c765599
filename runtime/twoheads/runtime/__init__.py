"""Load a bundle and run it for any input length; needs NumPy and one backend, never torch or onnx."""
