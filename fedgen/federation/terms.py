"""How long a round over Flower waits, and for whom: reporting goals and windows (Bonawitz et al., MLSys 2019)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Terms:
    """How long a round waits, and for whom.

    Attributes:
        deadline_s: seconds that a round waits for replies once all requests are out; None to wait for all of them.
        quorum: share of the requests; when so many have been answered with an update, the round ends soon.
        grace_s: so many seconds after that.
        min_clients: a round begins when so many clients can be asked.
        gather_s: before its first round a run waits so long for all clients to be there.
        patience_s: seconds to wait for `min_clients` before the run is given up; None to wait for ever.
        poll_s: seconds between two looks.
    """

    deadline_s: float | None = None
    quorum: float = 1.0
    grace_s: float = 0.0
    min_clients: int = 1
    gather_s: float = 60.0
    patience_s: float | None = None
    poll_s: float = 0.5

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("deadline_s", "patience_s", "poll_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it is seconds, more than 0")
        for name in ("grace_s", "gather_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it is seconds, at least 0")
        if not 0 < self.quorum <= 1:
            raise ValueError(
                f"quorum is {self.quorum}; it is a share of the clients that are asked, above 0, at most 1"
            )
        if self.min_clients < 1:
            raise ValueError(f"min_clients is {self.min_clients}; a round needs at least 1")
