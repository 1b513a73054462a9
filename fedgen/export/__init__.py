"""Gives the model away. ``card`` is not an option: it is the model card that every export carries."""
