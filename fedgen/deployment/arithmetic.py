"""A process of its own that imports torch and multiplies two matrices, since a wrong build of torch kills its process.

Run as ``python -m fedgen.deployment.arithmetic``; prints one JSON object.
"""

import json
import sys


def main() -> int:
    """Prints what torch is and whether its arithmetic is right."""
    import torch

    torch.manual_seed(0)
    # Whole numbers this small have no rounding, so every processor has to get the same.
    left, right = (torch.randint(-8, 9, (96, 96)).float() for _ in range(2))
    exact = (left.long() @ right.long()).float()
    told = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "right": bool(torch.equal(left @ right, exact)),
        "threads": torch.get_num_threads(),
    }
    sys.stdout.write(json.dumps(told) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
