"""The torch door: a folder or a module becomes a source graph."""
