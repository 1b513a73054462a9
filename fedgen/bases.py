"""The model in the types of weights that devices hold it in."""

import threading

from fedgen.errors import ModelError
from fedgen.experiment import Experiment
from fedgen.learner import Base


class Bases:
    """The model in each type of weights that somebody asks for; each is loaded once, when it is first asked for.

    Args:
        experiment: has the model.
        base: the model as it is loaded already.
        dtype: type of its weights; None for that of the experiment.

    Attributes:
        lightest: type in which the weights take least memory.
    """

    def __init__(self, experiment: Experiment, base: Base, dtype: str | None = None) -> None:
        self.lightest = experiment.model.lightest
        self._experiment = experiment
        self._loaded: dict[str | None, Base] = {None: base, dtype: base}
        self._refused: set[str] = set()
        self._lock = threading.Lock()

    def of(self, dtype: str | None) -> Base:
        """The model with its frozen weights in a type; None for that of the experiment.

        Raises:
            ModelError: it cannot be loaded so.
        """
        with self._lock:
            if dtype not in self._loaded:
                self._loaded[dtype] = self._experiment.model.load(self._experiment.seed, dtype=dtype)
            return self._loaded[dtype]

    def has(self, dtype: str) -> bool:
        """Whether it can be loaded so; found out once."""
        try:
            return dtype not in self._refused and self.of(dtype) is not None
        except ModelError:
            self._refused.add(dtype)
            return False
