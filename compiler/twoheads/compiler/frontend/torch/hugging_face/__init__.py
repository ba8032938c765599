"""What is known of transformers: its attention functions, its masks, and architectures by name."""
