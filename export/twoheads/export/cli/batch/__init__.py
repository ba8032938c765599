"""The command ``batch`` and its parts."""
