"""What holds for every test: one thread, no network, no telemetry, and on CI the same drawn examples every time."""

import os

# Libraries read these when they are imported, so they come first.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["DO_NOT_TRACK"] = "1"

import ipaddress
import socket
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "house")


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Refuses every socket that leaves this machine, and every look-up of another machine's name."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _guarded(getattr(socket.socket, name)))
        resolve = socket.getaddrinfo
        patch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: resolve(_local(host), *rest, **more))
        yield


def _guarded(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _local(address[0])
        return connect(self, address)

    return guarded


def _local(host: Any) -> Any:
    """The host, if it is this machine.

    Raises:
        RuntimeError: it is another. Not an OSError, which code that tries its luck would catch.
    """
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return host
    try:
        if ipaddress.ip_address(name).is_loopback or ipaddress.ip_address(name).is_unspecified:
            return host
    except ValueError:
        pass
    raise RuntimeError(f"a test reached for the network: {name!r}")
