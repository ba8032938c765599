"""Attention by tiles that merge."""
