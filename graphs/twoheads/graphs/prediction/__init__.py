"""How long a schedule takes on a device that was measured."""
