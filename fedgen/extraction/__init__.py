"""Which part of the model a client gets. An option picks units of a named axis and never sees a tensor.

Options: ``full``, ``static``, ``ordered``, ``rolling``, ``random``, ``importance``, ``anchored``, which cut widths, and
``depth``, which leaves out layers. ``kinds`` is no option and has no configuration of its own: it knows which axes an
option of the width may cut.
"""
