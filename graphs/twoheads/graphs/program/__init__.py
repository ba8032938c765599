"""The block program: the contract between compiler and runtime."""
