"""Several stages in one engine."""
