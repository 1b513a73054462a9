"""Ports that are drawn are free, and are none that the system gives away."""

import socket
from pathlib import Path

from fedgen import ports


def test_what_is_taken_or_spoken_for_is_not_drawn(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setattr(ports, "PORTS", (taken.getsockname()[1], 20001, 20002))
        assert {ports.free_port(20001) for _ in range(50)} == {20002}


def test_no_port_is_one_that_an_outgoing_connection_gets():
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports.PORTS) < lowest
    assert ports.free_port() in ports.PORTS
