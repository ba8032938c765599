"""Everything that a machine with an NVIDIA GPU can show in eight minutes: steps, each of which may fail alone."""
