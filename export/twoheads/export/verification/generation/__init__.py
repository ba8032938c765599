"""The proof of generating, step by step."""
