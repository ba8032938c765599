"""What a developer or a benchmark runs; not part of the installed packages."""
