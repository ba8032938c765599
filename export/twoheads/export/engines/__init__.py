"""Engines as a run uses them: which there are, and what they are given."""
