"""The file that extends a sequence: tokens and what is kept of those before in, logits and what is kept then out.

It has two bodies, of which every run takes one: all stages at one row for a single token, and all stages over whole
blocks for a prompt. Both attend to what was kept and what is new, in tiles that are cut from it when they are read.
"""
