"""What runs an engine file."""
