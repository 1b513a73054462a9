"""One function per question about a machine; each gives a ``Finding`` and imports no torch.

``software``: versions, and arithmetic in a process of its own. ``machine``: memory, disk, heat. ``link``: name, port,
certificate and clock of the server. ``keys``: files of a bundle and of a server's home. ``model``: the base model.
"""
