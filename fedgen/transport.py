"""How the round loop talks to devices. Drivers differ in their transport and in nothing else."""

from collections.abc import Iterator, Mapping
from typing import Protocol, runtime_checkable

from fedgen.messages import Reply, Request

Report = Mapping[str, int | float | str]
"""What a device says of itself, every entry optional: `memory_bytes` that its work may take now, `temperature_c`,
`battery` as a share of its charge, and others that are told and not acted upon."""


@runtime_checkable
class Transport(Protocol):
    """How the round loop talks to devices."""

    def nodes(self) -> list[str]:
        """Names of the clients that can be asked now, sorted."""

    def reports(self) -> Mapping[str, Report]:
        """Client → what its device last said of itself; empty where devices are what the fleet says."""

    def look_again(self, why: str) -> bool:
        """Waits a while and asks devices anew what they have, when for a reason they told none of them can work now.

        False where that changes nothing, or patience is over.
        """

    def send(self, requests: Iterator[Request]) -> None:
        """Hands requests over; the iterator is drawn on as devices become free, so that few payloads exist at once."""

    def receive(self) -> Iterator[Reply]:
        """Replies as they come, one for every request sent; every fault comes back as an error reply."""
