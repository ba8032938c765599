"""Runs that are stopped and go on."""
