"""Whether an experiment's model fits into so many bytes; a process for ``fedgen doctor``, which loads no torch.

Run as ``python -m fedgen.cli.fits EXPERIMENT BYTES``; prints one JSON object.
"""

import json
import sys
from pathlib import Path

from fedgen.errors import FedgenError


def main(experiment: Path, memory_bytes: int) -> int:
    """Prints how a device with this memory would work, if it would, and what the least is that any device needs."""
    from fedgen.cli.load import load
    from fedgen.devices import Device
    from fedgen.federation.local import planned

    try:
        planner = planned(load(experiment))
    except FedgenError as error:
        print(error, file=sys.stderr)
        return 2
    found = planner.choose(Device(kind="this", memory_bytes=memory_bytes))
    least = min(planner.forecast(step, Device()).needed_bytes for step in planner.ladder())
    told = {
        "rung": None if found is None else found.step.rung.name,
        "needed_bytes": None if found is None else found.needed_bytes,
        "least_bytes": least,
    }
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
