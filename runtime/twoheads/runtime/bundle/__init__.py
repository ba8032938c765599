"""Reading a bundle and checking all of it."""
