"""What a client works on, and how it works so that it fits there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Device:
    """What a client has to work with in one round.

    Attributes:
        width: share of the units of every cut axis that fits on it; 0 if it takes no part. Of a device that tells its
            memory, the planner decides.
        has_base: it keeps the base model's checkpoint on its disk, so that only what is trained travels.
        delay: its reply comes in so many rounds after the one in which it is asked; 0: in the same round.
        kind: what it is (`raspberry_pi_4_2g`), for tables; empty if nobody says.
        memory_bytes: what its training process may hold at most; None if nobody says, and then nothing is planned.
        cores: of its processor.
        step_seconds: seconds that it takes for the reference step of `fedgen plan`; None if it was not measured.
        link_bytes_per_s: of its connection, either way; None if nobody says.
        temperature_c: of its processor, in degrees Celsius; None if nobody says.
        battery: share of its charge, 0 to 1; None if it hangs on the mains.
    """

    width: float = 1.0
    has_base: bool = True
    delay: int = 0
    kind: str = ""
    memory_bytes: int | None = None
    cores: int = 1
    step_seconds: float | None = None
    link_bytes_per_s: float | None = None
    temperature_c: float | None = None
    battery: float | None = None


@dataclass(frozen=True)
class Rung:
    """How a device works so that it fits: a step of the planner's ladder. What is None is as the experiment says.

    Attributes:
        name: what tables call it; empty for the experiment as it is.
        dtype: type in which the frozen weights are held.
        checkpointing: layers are computed again in the backward pass instead of kept.
        chunk_tokens: rows of logits that exist at once.
        micro_batch: examples that go through the model at once.
        max_length: longest example in tokens.
        tight: freed memory goes back to the system at once (`lean.free_early`), for a process of its own.
        light: the experiment's light client trains, which keeps nothing for a backward pass.
    """

    name: str = ""
    dtype: str | None = None
    checkpointing: bool | None = None
    chunk_tokens: int | None = None
    micro_batch: int | None = None
    max_length: int | None = None
    tight: bool = False
    light: bool = False
