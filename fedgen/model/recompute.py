"""Layers that keep what goes into them and nothing else, and are computed anew when the backward pass needs the rest.

Gradient checkpointing: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, section 4, with one segment
per layer.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def recomputed(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Has the given layers recompute what they do while this is open; the backward pass may come later.

    A layer that nothing trained stands in or before keeps nothing at all and is not run again.

    Args:
        layers: must give the same twice, as they do in evaluation mode, where nothing is dropped at random.
    """
    wrapped: list[Any] = []
    try:
        for layer in layers:
            # On the instance and for a while only: copies of a module must not run the layers of another. transformers'
            # own switch works in training mode alone. The reentrant variant gives no gradients below frozen embeddings,
            # and a saved random state would be that of all threads.
            wrapped.append(layer)
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        yield
    finally:
        for layer in wrapped:
            del layer.forward
