"""What computes a few tokens behind keys that are kept: engines, and calls of them bound to one sequence."""
