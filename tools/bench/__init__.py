"""Ours beside other runtimes, measured alternately in one run: ``python -m tools.bench``."""
