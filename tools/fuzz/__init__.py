"""Mutated inputs of every kind against the product: refused, the same bits, or a difference; never a traceback."""
