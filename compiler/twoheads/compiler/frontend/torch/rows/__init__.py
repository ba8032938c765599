"""Slices, concatenations and reductions over tokens as sequence operators."""
