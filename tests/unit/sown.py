"""A toy language that is both somebody's data and a public task, for tests of seeding on the tiny model."""

import dataclasses
from pathlib import Path

import yaml

from fedgen.adapter.lora import Lora
from fedgen.client.first_order import FirstOrder
from fedgen.data.synthetic import SIGNS, THINGS, Synthetic
from fedgen.generator.grammar import Grammar
from fedgen.model.tiny import Tiny
from fedgen.seeding import Seeding
from fedgen.types import Dataset, Example, Message
from tests.unit.federation.test_local import QUICK

TUNING = FirstOrder(learning_rate=1e-2, num_steps=25, batch_size=8)


@dataclasses.dataclass(frozen=True)
class Talk:
    """The toy language as turns of a conversation, which is what tasks are written in."""

    num_public: int = 48

    def load(self, seed):
        found = Synthetic(num_owners=4, num_train=16, num_eval=32, num_public=self.num_public).load(seed)
        evaluation = {name: tuple(map(said, examples)) for name, examples in found.evaluation.items()}
        return Dataset(tuple(map(said, found.train)), evaluation, "toy", tuple(map(said, found.public)))

    def prompt(self, text):
        return (Message("user", text),)


def said(example):
    turns = (Message("user", example.text.rstrip(": ")),)
    return Example(turns, example.completion, example.owner, example.label)


def task_of(folder, *, signs=SIGNS, things=THINGS):
    """A file that describes the language; other signs or things describe another."""
    labels = {verb: {"means": verb, "forms": [form_of(verb, sign)]} for verb, sign in signs.items()}
    slots = {"thing": {"means": "a thing", "values": dict(things)}, "number": {"means": "which", "low": 0, "high": 9}}
    described = {"name": "toy", "kind": "commands", "description": "Set things.", "labels": labels, "slots": slots}
    file = Path(folder) / "toy.yaml"
    file.write_text(yaml.safe_dump(described))
    return str(file)


def form_of(verb, sign):
    texts = [f"{{thing}} {{number}} {verb}", f"{verb} {{thing}} {{number}}", f"set {{thing}} {{number}} {verb}"]
    return {"answer": f"{{thing}}{{number}}{sign}", "texts": texts}


def seeded(task, **seeding):
    """An experiment on four clients that begins with a seed."""
    settings = {"num_examples": 240, "num_held_out": 40, "num_turns": 6, "check_every": 2, **seeding}
    return dataclasses.replace(
        QUICK,
        data=Talk(),
        model=Tiny(),
        adapter=Lora(rank=64, alpha=64.0),
        generator=Grammar(),
        seeding=Seeding(TUNING, task, **settings),
    )
