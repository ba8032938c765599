"""Variants that vendors' compilers build."""
