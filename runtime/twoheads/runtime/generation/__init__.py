"""Sequences that grow: kept keys and values, prompts in blocks, one token after the other, and how it is chosen."""
