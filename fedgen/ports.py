"""Ports of this machine that a process of our own may listen on."""

import secrets
import socket

PORTS = range(20000, 32000)
"""Below those that the system gives to outgoing connections: one of those may be taken between choice and use."""


def free_port(*but: int) -> int:
    """Draws a port on which nobody listens now.

    It is drawn, so that two processes that choose at the same time rarely choose the same.

    Args:
        but: ports that are spoken for.
    """
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as probe:
            if port not in but and probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
