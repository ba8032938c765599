"""What a caller gives, checked and brought into the form of a run."""
