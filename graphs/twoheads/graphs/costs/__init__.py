"""Calls, operations and bytes of a program, in closed form."""
