"""What a federation knows before its first round, for tests of what depends on it."""

from typing import Any

from fedgen.aggregation.masked_mean import MaskedMean
from fedgen.client.first_order import FirstOrder
from fedgen.data.synthetic import Synthetic
from fedgen.evaluation.exact_match import ExactMatch
from fedgen.experiment import Experiment
from fedgen.export.merged import Merged
from fedgen.extraction.random import Random
from fedgen.federation.local import Local
from fedgen.fleet.uniform import Uniform
from fedgen.learner import Base
from fedgen.model.tiny import Tiny
from fedgen.partition.by_owner import ByOwner
from fedgen.parts import Ground, ground_of
from fedgen.selection.all import All
from fedgen.stages import Adapter
from fedgen.wire.dense import Dense

CLIENTS = ("attic", "barn", "cellar")


def make_ground(base: Base, adapter: Adapter, **fields: Any) -> Ground:
    """The ground of an experiment on a loaded model; ``fields`` takes the place of its own stages."""
    stages = {
        "fleet": Uniform(),
        "data": Synthetic(),
        "partition": ByOwner(),
        "model": Tiny(),
        "extraction": Random(),
        "client": FirstOrder(num_steps=1, batch_size=4),
        "selection": All(),
        "wire": Dense(),
        "aggregation": MaskedMean(),
        "evaluation": ExactMatch(),
        "export": Merged(),
        "federation": Local(num_workers=1),
    }
    experiment = Experiment(**{**stages, "adapter": adapter, **fields})
    [learner] = experiment.learners(base, 1)
    return ground_of(experiment, base, learner, CLIENTS, None)
