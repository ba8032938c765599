"""Whole journeys: a bundle is built and packed for a target, and run where nothing but that target's runtime is."""
