"""Operators of ours that a captured graph holds, and what they compute eagerly."""
