"""What crosses between a server and a device."""

from dataclasses import dataclass, field

from jaxtyping import UInt8
from torch import Tensor

from fedgen.devices import Rung
from fedgen.types import Kept, Metrics, Part


@dataclass(frozen=True)
class Payload:
    """What crosses the wire: one packed array and the manifest that says what lies in it, in order.

    Attributes:
        manifest: (tensor name, dtype name, shape) of each tensor.
        data: the bytes.
    """

    manifest: tuple[tuple[str, str, tuple[int, ...]], ...]
    data: UInt8[Tensor, " payload_bytes"]

    @property
    def num_bytes(self) -> int:
        """Bytes that travel for the tensors."""
        return self.data.numel()


@dataclass(frozen=True)
class Request:
    """What the server asks of one client in one round.

    Attributes:
        round: counted from 1.
        client: name of the client.
        progress: how much of the run is over, from 0 in the first round to 1 in the last.
        part: what the client works with.
        payload: what it needs of the state.
        base: SHA-256 of the model that the part is of; a device with another one refuses.
        rung: how the client works so that it fits.
        num_measured: on so many of its examples, at most, the client measures what it was sent, and trains on none; its
            reply has numbers and no payload. 0: it trains.
    """

    round: int
    client: str
    progress: float
    part: Part
    payload: Payload
    base: str = ""
    rung: Rung = field(default_factory=Rung)
    num_measured: int = 0


@dataclass(frozen=True)
class Reply:
    """What comes back. Either a payload with the change, or an error in a word.

    Attributes:
        round: the round of the request that it answers.
        client: name of the client.
        payload: the change to the tensors of the request (deltas, not weights); None when the client failed.
        num_examples: weight of the change: how many examples it was trained on.
        metrics: numbers about the client's work (loss, seconds, bytes of memory).
        error: why there is no payload; a fixed word, never text from the device.
        kept: units to which the change is confined, on axes of which the client trained less than its part; they are
            numbered as in the whole model.
    """

    round: int
    client: str
    payload: Payload | None = None
    num_examples: int = 0
    metrics: Metrics = field(default_factory=dict)
    error: str = ""
    kept: Kept = field(default_factory=dict)
