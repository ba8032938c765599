"""Between people and tokens: conversations, text as it comes."""
