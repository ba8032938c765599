"""What commands leave when they are killed, refused room or rights, and what a process keeps that runs for long."""
