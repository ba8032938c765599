"""Steps that write their keys and values where they are kept."""
