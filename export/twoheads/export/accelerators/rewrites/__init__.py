"""Exact rewrites of an engine that a compiler needs."""
