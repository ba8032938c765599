"""Commands about what leaves for a device: its toolchain, its pack, the proof on it."""
