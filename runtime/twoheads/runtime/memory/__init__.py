"""Where values live: arrays, files, results."""
