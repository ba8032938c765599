"""Attention that a model spells out, found in its operators and proven by running it."""
