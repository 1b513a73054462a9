"""Many updates → next state. Updates are folded as they arrive; no more than one is held."""
