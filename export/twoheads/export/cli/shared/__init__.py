"""What several commands share: options, arguments, console and progress."""
