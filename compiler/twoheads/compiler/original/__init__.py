"""The model as it was given, run as the yardstick."""
