"""Bundles for accelerators: what their compilers can take, and their compilers, run in environments of their own."""
