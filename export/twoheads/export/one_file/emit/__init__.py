"""The parts of the file's graph: values, lengths, and a module for every kind of stage."""
