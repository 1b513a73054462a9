"""A lean process lacks what training does not use, and ends with the same bits."""

import json
import subprocess
import sys

import pytest

from fedgen.model.tiny import Tiny

PREPARE = """
import sys
if sys.argv[1] == "lean":
    from fedgen.lean import slim_down
    slim_down()
import torch
torch.set_num_threads(1)
"""

# Whole and part, all kinds of adapters, types of weights and both kinds of attention.
TRAIN = """
import hashlib, itertools, json
from fedgen import seeds
from fedgen.adapter.full import Full
from fedgen.adapter.lora import Lora
from fedgen.client.first_order import FirstOrder
from fedgen.model.causal_lm import CausalLM
from fedgen.types import Example

examples = [Example(f"lamp {n} ", "on" if n % 2 else "off") for n in range(6)]
kept = {f"ffn.{layer}": torch.arange(24) for layer in range(2)}
told = {}
for dtype, adapter, part in itertools.product(("float32", "bfloat16"), (Lora(), Full()), (None, kept)):
    base = CausalLM(sys.argv[2], dtype=dtype).load(0, part)
    module = adapter.attach(base.replica(private=adapter.trains_base))
    learner = base.learner(module, adapter.parameters(module))
    learner.load(adapter.initial(module, seeds.derive(0, "initial")))
    FirstOrder(num_steps=3).train(learner, learner.encode(examples), 0.0, seeds.derive(0, "train"))
    digest = hashlib.sha256()
    for name, tensor in sorted(learner.state().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    told[f"{dtype} {adapter} {part is None}"] = digest.hexdigest()
print(json.dumps({"states": told, "modules": sorted(name for name, module in sys.modules.items() if module)}))
"""


def run(script, *arguments):
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    base = Tiny(hidden_size=32, num_heads=2, num_kv_heads=1, intermediate_size=48).load(5)
    base.module.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lean(folder):
    return run(PREPARE + TRAIN, "lean", str(folder))


def test_it_trains_to_the_same_bits(lean, folder):
    plain = run(PREPARE + TRAIN, "plain", str(folder))
    assert lean["states"] == plain["states"]
    assert len(set(lean["states"].values())) == 8


def test_what_training_does_not_use_is_not_there(lean):
    """Left out as a whole; the names of the four that stand by are there, and all that they would bring is not."""
    brought = ("scipy", "sklearn", "PIL", "mpmath", "sympy.core", "torch._dynamo.", "torch.distributed.tensor.")
    allowed = {"torch._dynamo.config", "torch._dynamo._trace_wrapped_higher_order_op"}
    found = [name for name in lean["modules"] if name.startswith(brought) and name not in allowed]
    assert found == []


EXPRESSIONS = """
import json
import sympy
from torch.fx.experimental.symbolic_shapes import sym_eq
plain = [sym_eq((2, 3), torch.Size([2, 3])), sym_eq(2, 3)]
size = sympy.Symbol("size")
import sympy as again
from torch.fx.experimental.symbolic_shapes import ShapeEnv, guard_or_false
print(json.dumps([plain, isinstance(size, sympy.Basic), isinstance(size, again.Basic), guard_or_false(True)]))
"""

COMPILE = """
import json
%s
try:
    told = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(3)).tolist()
except ImportError as error:
    told = str(error)
print(json.dumps(told))
"""


def test_what_stands_by_comes_when_it_is_asked_for():
    assert run(PREPARE + EXPRESSIONS, "lean") == [[True, False], True, True, True]
    assert run(PREPARE + COMPILE % "torch._dynamo.reset()", "lean") == [2.0, 2.0, 2.0]


def test_who_compiles_all_the_same_is_told():
    assert "slimmed down" in run(PREPARE + COMPILE % "", "lean")


def test_a_package_that_looks_absent_says_so():
    script = "import importlib.util, json\ntry:\n    import scipy.optimize\nexcept ModuleNotFoundError:\n"
    script += "    print(json.dumps(importlib.util.find_spec('scipy') is None))\n"
    assert run(PREPARE + script, "lean") is True


def test_it_must_come_first():
    script = "import json, transformers\nfrom fedgen.lean import slim_down\ntry:\n    slim_down()\n"
    script += "except AssertionError as error:\n    print(json.dumps(str(error)))\n"
    assert "any more" in run(script)
