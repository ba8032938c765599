"""Equal layers of a model: traced twice, and copied from then on."""
