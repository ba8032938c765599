"""What the masks among an ONNX file's inputs hold."""
