"""The source graph that both doors make, and the protocols that passes read it through."""
