"""A change that was made along seeded directions, as the seeds and one number for each; everything else is dense.

FedKSeed: Qin et al., "Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18
Kilobytes", ICML 2024, section 3. The server takes the same steps from the same seeds, and has the change to the bit.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fedgen.directions import replay
from fedgen.errors import ClientError
from fedgen.messages import Payload
from fedgen.types import Plan, State, Walk
from fedgen.wire.dense import Dense

WALK = "walk"
"""Stands in a manifest where a tensor has its type; no tensor has this one."""

STEP_BYTES = 8
"""Of one step: its seed as int32 and its scale as float32."""


@dataclass(frozen=True)
class Seeds:
    """Seeds and scalars of a zeroth-order client's steps in place of its change (FedKSeed).

    States, and changes that were not made along seeded directions, go at full precision.

    Attributes:
        max_steps: a longer walk goes dense, and is refused if it comes: the server takes every step again.
    """

    max_steps: int = 1024

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        if self.max_steps < 1:
            raise ValueError(f"max_steps is {self.max_steps}; it must be at least 1")

    def encode(self, state: State, plan: Plan | None = None, walk: Walk | None = None) -> Payload:
        """Packs the seeds of a walk and after them its scales, 8 bytes a step; a state without a walk like `dense`.

        Raises:
            ValueError: a seed takes more than 4 bytes, or a tensor is of a type that the wire does not carry.
        """
        if walk is None or len(walk.seeds) > self.max_steps:
            return Dense().encode(state, plan)
        seeds = walk.seeds.to(torch.int32)
        if not torch.equal(seeds, walk.seeds):
            raise ValueError("a seed of a walk takes more than 4 bytes; draw seeds below 2**31")
        halves = (seeds, walk.scales.contiguous())
        return Payload((("", WALK, (len(seeds),)),), torch.cat([half.view(torch.uint8) for half in halves]))

    def decode(self, payload: Payload, shapes: Mapping[str, tuple[int, ...]] | None = None) -> State:
        """Takes the steps of a walk again, or views the bytes of a dense payload.

        Raises:
            ClientError: `malformed`, if manifest and bytes do not fit together, or a walk has more than `max_steps`
                steps, a scale that is not finite, or comes where no change is expected.
        """
        if [kind for _, kind, _ in payload.manifest] != [WALK]:
            return Dense().decode(payload, shapes)
        [(_, _, length)] = payload.manifest
        num_steps = payload.data.numel() // STEP_BYTES
        if shapes is None or length != (num_steps,) or payload.data.numel() != num_steps * STEP_BYTES:
            raise ClientError(
                "malformed", f"a walk of {length} steps comes in {payload.data.numel()} bytes, or unasked"
            )
        if num_steps > self.max_steps:
            raise ClientError("malformed", f"a walk has {num_steps} steps; wire.max_steps allows {self.max_steps}")
        seeds, scales = payload.data.view(torch.int32)[:num_steps].long(), payload.data.view(torch.float32)[num_steps:]
        if not bool(scales.isfinite().all()):
            raise ClientError("malformed", "a walk has a step that is not finite")
        return replay(Walk(seeds, scales), shapes)
