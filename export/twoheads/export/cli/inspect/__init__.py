"""The command ``inspect`` and its parts."""
