"""What the examples are and who owns them. An option loads examples with their owners and the splits to measure on.

Options: ``smart_home``, ``jsonl``, ``synthetic``, ``text``, ``images``. What they stand on is no option
and has no configuration of its own: ``grammar`` samples and judges commands, ``home`` and ``inventories`` furnish a
household, ``speaker`` draws what is said in one, ``skew`` draws uneven mixes.
"""
