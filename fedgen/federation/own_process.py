"""A client's turn in a process of its own, as on a device: it holds its model and nothing of the server's.

So the peak memory that a turn reports is the device's own, and can be compared with what the planner said. It costs the
imports and the loading of the model in every turn.
"""

import multiprocessing
import multiprocessing.connection
from dataclasses import dataclass

from fedgen.bases import holds_all, opened
from fedgen.device import Holding, answer
from fedgen.experiment import Experiment
from fedgen.lean import free_early, give_back, slim_down
from fedgen.messages import Reply, Request
from fedgen.parts import Ground, ground_of
from fedgen.types import Scores


@dataclass(frozen=True)
class Turn:
    """Everything that a process needs for one turn.

    Attributes:
        experiment: what to do.
        clients: names of all clients.
        scores: how much each unit matters, if the extraction asks.
        plans: some devices tell their memory.
        request: what the server asks.
        holding: the client's.
    """

    experiment: Experiment
    clients: tuple[str, ...]
    scores: Scores | None
    plans: bool
    request: Request
    holding: Holding


def answer_apart(ground: Ground, request: Request, holding: Holding) -> Reply:
    """What `device.answer` gives, from a process that lives for this turn alone."""
    # Not forked: a fork would begin with the memory of the server, and with its threads' locks.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    turn = Turn(ground.experiment, ground.clients, ground.scores, ground.plans, request, holding)
    process = context.Process(target=_work, args=(there,), daemon=True)
    process.start()
    there.close()
    try:
        here.send(turn)
        reply: Reply = here.recv()
        # Tensors come from the memory of the process that sends them, so it waits until they are here.
        here.send(None)
    except (EOFError, OSError):
        # Killed, out of memory most likely; the run goes on without it.
        reply = Reply(request.round, request.client, error="died")
    finally:
        process.join()
        here.close()
    return reply


def _work(connection: multiprocessing.connection.Connection) -> None:
    """One turn; runs in the new process."""
    import torch

    slim_down()
    torch.set_num_threads(1)
    turn: Turn = connection.recv()
    experiment, dtype = turn.experiment, turn.request.rung.dtype
    free_early(tight=turn.request.rung.tight)
    base, learner = opened(experiment, dtype, whole=holds_all(experiment, turn.request.part))
    give_back()
    ground = ground_of(experiment, base, learner, turn.clients, turn.scores, plans=turn.plans, dtype=dtype)
    connection.send(answer(ground, turn.request, learner, turn.holding))
    connection.recv()
