"""Models larger than the memory: made of random weights, compiled, run, compared with a reference layer by layer."""
