"""Layers of single architectures, written so that a graph can hold them."""
