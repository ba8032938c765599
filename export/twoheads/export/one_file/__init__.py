"""A bundle as one ONNX file that takes any length: fixed-shape engines as functions, the block loop as control flow.

For hosts that have ONNX Runtime and nothing of ours. The file does what the runtime does with the same bundle, call by
call: token-wise regions are scans over blocks, attention is a loop over query blocks with loops over key tiles in it.
"""
