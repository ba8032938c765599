"""A program expanded for one length."""
