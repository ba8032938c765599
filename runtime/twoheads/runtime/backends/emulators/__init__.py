"""What vendors' compilers built, run by the vendors' own emulators in processes and environments of their own."""
