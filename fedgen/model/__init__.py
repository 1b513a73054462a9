"""Loads a model and puts it to work.

Options: ``causal_lm`` (any decoder of transformers) and ``tiny`` (random weights, for tests). What they stand on is not
an option and has no configuration of its own: ``source`` finds the files, ``text`` is the model at work, ``packing``
lays examples side by side in few rows, ``loss`` goes from hidden states to token losses.
"""
