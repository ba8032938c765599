"""What is done to a source graph before it is lowered."""
