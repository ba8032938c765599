"""Programs and manifests as JSON."""
