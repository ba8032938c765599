"""One run from inputs to outputs."""
