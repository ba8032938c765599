"""Many documents in one run, with a result each."""
