"""Pure data and its algebra: masks and their tiles, the block program, and its schedule for one length."""
