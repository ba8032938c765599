"""What leaves for a device as one folder, and what proves there that it computes what it should."""
