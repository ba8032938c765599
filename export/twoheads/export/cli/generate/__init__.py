"""The commands that continue text: prompts and conversations."""
