"""Federated fine-tuning of generative models on IoT devices.

Start at ``fedgen/experiment.py`` (one field per stage), then ``fedgen/rounds.py`` (the loop), then
``fedgen/types.py`` (the nouns), then any one option, ``fedgen/client/first_order.py`` say. The command line is
``fedgen --help``.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
