"""The command ``plan`` and its parts."""
