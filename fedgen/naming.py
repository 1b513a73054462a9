"""Which dimensions of the model's weights and of the adapter's tensors have names, by which parts are made."""

from fedgen.errors import ConfigError, ModelError
from fedgen.experiment import Experiment
from fedgen.learner import Base
from fedgen.types import Axes, State


def named_axes(experiment: Experiment, base: Base, state: State, *, plans: bool) -> tuple[Axes, Axes]:
    """Names of the dimensions of the weights, and of the tensors of the adapter.

    Args:
        experiment: what to do.
        base: the model.
        state: the adapter's tensors, also those that never travel.
        plans: the planner may ask for parts besides; it does without, where a family is not known well enough.

    Raises:
        ConfigError: an axis is to be cut that is not there.
        ModelError: parts are to be made of a model that is not known well enough.
    """
    wanted = set(experiment.extraction.axes)
    if wanted or plans:
        try:
            base_axes = base.axes
        except ModelError:
            if wanted:
                raise
        else:
            axes = experiment.adapter.axes(state, base_axes)
            kinds = {axis.partition(".")[0] for axis in axes.units}
            if missing := sorted(wanted - kinds):
                raise ConfigError(
                    f"extraction.axes has {', '.join(missing)}, which this model and adapter do not have; they have "
                    f"{', '.join(sorted(kinds))}"
                )
            return base_axes, axes
    # No dimension is ever cut, so none needs a name; any family can be used whole.
    return _unnamed(base.weights), _unnamed(state)


def _unnamed(tensors: State) -> Axes:
    return Axes({name: (None,) * tensor.dim() for name, tensor in tensors.items()}, {})
