"""Whether an experiment's model fits into so many bytes; a process for ``fedgen doctor``, which loads no torch.

Run as ``python -m fedgen.cli.fits EXPERIMENT BYTES``; prints one JSON object.
"""

import json
import sys
from pathlib import Path

from fedgen.errors import FedgenError


def main(experiment: Path, memory_bytes: int) -> int:
    """Prints how a device with this memory would work, and what it needs; without a way, the least of any."""
    from fedgen.cli.load import load
    from fedgen.devices import Device
    from fedgen.federation.course import planned

    try:
        planner = planned(load(experiment))
    except FedgenError as error:
        print(error, file=sys.stderr)
        return 2
    found = planner.choose(Device(kind="this", memory_bytes=memory_bytes))
    if found is None:
        needed = min(planner.forecast(step, Device()).needed_bytes for step in planner.ladder())
    else:
        needed = found.needed_bytes
    print(json.dumps({"rung": None if found is None else found.step.rung.name, "needed_bytes": needed}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
