"""Many updates → next state. Updates are folded as they arrive; no more than one is held.

Options: ``mean``, ``masked_mean``, ``flexlora``. ``held_sum`` is no option and has no configuration of its own: it adds
up changes to parts and knows who held what.
"""
