"""How files are mutated: as bytes, as JSON, and as what their format says."""
