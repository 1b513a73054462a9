"""Which client holds which examples. An option splits a plain sequence of examples; nothing is copied.

flwr-datasets was weighed: its partitioners work on ``datasets.Dataset`` and bring pyarrow (170 MB) along.
"""
