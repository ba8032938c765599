"""Attention by engines that return no log-sum-exp."""
