"""The kinds of engines that a program declares."""
