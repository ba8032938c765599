"""Capture a model and lower it to a block program with fixed-shape engines."""
