"""From regions and attentions to a block program: tiles, stock attention, or the oracle."""
