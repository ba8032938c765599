"""Weights that stay in their files until something computes with them."""
