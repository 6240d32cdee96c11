"""Losses of one call signature: `loss(logits, target, features=None)`."""
