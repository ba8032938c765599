"""A compiled model into a bundle on disk, completely or not at all."""
