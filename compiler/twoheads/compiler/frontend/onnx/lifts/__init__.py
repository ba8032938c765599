"""Files of one length or of one batch, made files of any length and of one input."""
