"""Other programs with the same result, derived from a stored one."""
