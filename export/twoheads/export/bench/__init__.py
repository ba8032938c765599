"""Time, memory and the share of the machine's peak of a bundle's runs."""
