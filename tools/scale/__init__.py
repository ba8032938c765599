"""Long inputs on a small machine: what they take, and what becomes of runs that are killed or find the disk full."""
