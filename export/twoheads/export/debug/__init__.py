"""Where an engine goes wrong: layer by layer between two backends, or reduced to the node that fails."""
