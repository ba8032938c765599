"""Workers, open engines and the state of a run."""
