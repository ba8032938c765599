"""The algebra of masks: which keys a block of queries may see."""
