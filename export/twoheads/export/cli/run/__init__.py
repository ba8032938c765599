"""The command ``run`` and its parts."""
