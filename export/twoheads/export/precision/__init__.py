"""Smaller weights and values: passes over a compiled model."""
