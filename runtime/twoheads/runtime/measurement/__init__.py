"""Clocks around engines: profiles, tuning and timed runs."""
