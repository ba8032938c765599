"""The captured FX graph: what is read off it and rewritten in it."""
