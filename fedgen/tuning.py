"""Central tuning: the server trains the whole model's adapter with the client's own loop, turn after turn.

GPT-FL (Zhang et al., 2023, arXiv 2306.02210, stage 3). Tuning is followed on examples of another draw, and the state
that did best on them is the one that counts (early stopping).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fedgen import seeds
from fedgen.learner import Learner
from fedgen.parts import Ground
from fedgen.stages import Client
from fedgen.types import Encoded, Metrics, Observer, Record, Score, State
from fedgen.workers import Workers

PATIENCE = 2
"""Looks in a row at a held-out loss that has not fallen, after which tuning stops: one may be chance."""


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        state: the one with the lowest loss on held-out examples.
        turn: after which it was found; 0 if no turn made anything better.
        num_tokens: that went through the model in training.
        losses: one ``{turn, loss, held_out}`` for each look; the first is before training and has no ``loss``.
    """

    state: State
    turn: int
    num_tokens: int
    losses: tuple[Record, ...]


def tune(
    ground: Ground,
    workers: Workers,
    state: State,
    examples: Sequence[Encoded],
    held_out: Sequence[Encoded],
    observe: Observer,
) -> Tuned:
    """Trains until the held-out loss falls no more, or the turns are used up.

    Args:
        ground: what is known before the first round; its experiment says how to tune.
        workers: one of them trains, all of them measure.
        state: to begin with.
        examples: to learn from.
        held_out: to stop by.
        observe: is told of each look.

    Raises:
        ClientError: the client's loop gave nothing usable (`non_finite_loss`, say).
    """
    seeding, size = ground.experiment.seeding, ground.experiment.evaluation_batch_size
    assert seeding is not None, "tuning is asked for by a seeding"
    lowest = mean_loss(scores_of(workers, state, held_out, size))
    best, best_turn, num_tokens, worse = state, 0, 0.0, 0
    losses: list[Record] = [{"turn": 0, "held_out": lowest}]
    for turn in range(1, seeding.num_turns + 1):
        progress = (turn - 1) / max(1, seeding.num_turns - 1)
        state, metrics = take_turn(ground, workers, seeding.client, state, examples, ("seeding", turn, progress))
        num_tokens += metrics.get("num_tokens", 0.0)
        if turn % seeding.check_every and turn < seeding.num_turns:
            continue
        loss = mean_loss(scores_of(workers, state, held_out, size))
        losses.append({"turn": turn, "loss": metrics.get("loss"), "held_out": loss})
        observe({"kind": "tuning", "of": seeding.num_turns, **losses[-1]})
        worse = 0 if loss < lowest else worse + 1
        if worse == PATIENCE:
            break
        if worse == 0:
            best, best_turn, lowest = state, turn, loss
    return Tuned(best, best_turn, int(num_tokens), tuple(losses))


def take_turn(
    ground: Ground,
    workers: Workers,
    client: Client,
    state: State,
    examples: Sequence[Encoded],
    when: tuple[str, int, float],
) -> tuple[State, Metrics]:
    """The state after one turn of a client's loop over the whole model, and what the loop says of it.

    Args:
        ground: what is known before the first round.
        workers: one of them trains.
        client: the loop.
        state: to begin with.
        examples: to learn from.
        when: purpose and number of the turn, which fix its draws, and how much of all turns is over, from 0 to 1.
    """
    purpose, number, progress = when

    def job(learner: Learner) -> tuple[State, Metrics]:
        own = _over_all(ground, learner, number)
        own.load(state)
        done = client.train(own, examples, progress, seeds.derive(ground.experiment.seed, purpose, number))
        trained = own.state()
        return {name: trained.get(name, tensor) for name, tensor in state.items()}, done.metrics

    return workers.borrow(job)


def _over_all(ground: Ground, learner: Learner, number: int) -> Learner:
    """A learner over the whole model that trains what the adapter trains in a round of that number."""
    adapter, base = ground.experiment.adapter, ground.base
    if all(adapter.is_trained(name, number) for name in ground.axes.dims.keys() - ground.fixed.keys()):
        return learner
    module = adapter.attach(base.replica(private=adapter.trains_base))
    parameters = adapter.parameters(module)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in ground.fixed and adapter.is_trained(name, number))
    own = base.learner(module, parameters)
    own.load(ground.fixed)
    return own


def scores_of(workers: Workers, state: State, examples: Sequence[Encoded], size: int) -> list[Score]:
    """Of each example, in order; the number of workers changes no bit.

    Args:
        workers: share the batches.
        state: what is measured.
        examples: on these.
        size: of a batch.
    """

    def job(learner: Learner, start: int) -> tuple[int, list[Score]]:
        learner.load(state)
        return start, learner.score(examples[start : start + size])

    found = dict(workers.map(job, range(0, len(examples), size)))
    return [score for start in sorted(found) for score in found[start]]


def mean_loss(scores: Sequence[Score]) -> float:
    """Nats per answer token."""
    return sum(score.nll for score in scores) / sum(score.num_tokens for score in scores)
