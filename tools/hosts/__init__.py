"""Two real models as one ONNX file each, in hosts that have ONNX Runtime and nothing of ours."""
