"""What a growing sequence keeps: keys and values of all layers, and the states of scans."""
