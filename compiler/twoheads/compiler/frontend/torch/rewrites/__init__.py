"""Rewrites of a freshly exported graph into operators that engines have; each says what it makes of what."""
