"""Engine files, read and checked before a backend opens one."""
