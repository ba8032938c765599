"""Engines as ONNX models of fixed shapes."""
