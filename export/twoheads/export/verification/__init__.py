"""The proof that a bundle is its original, to rounding."""
