"""Proof of models larger than the memory: the original layer by layer, each fed with what the bundle's one was fed."""
