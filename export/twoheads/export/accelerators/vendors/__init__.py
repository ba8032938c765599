"""One module a compiler, run by the Python that has it; nothing here imports ours."""
