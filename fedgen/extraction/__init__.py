"""Which part of the model a client gets. An option picks units of a named axis and never sees a tensor."""
