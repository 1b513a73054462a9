"""Sows before the first round: makes the synthetic set, tunes the adapter on it, and asks whether that is a good start.

GPT-FL: Zhang et al., 2023, arXiv 2306.02210. Two things are our own: the seed goes through a trial (``trial``) before
anybody trains on it, and after each round the server may take a turn on synthetic examples again (healing). What the
clients get and send is what they would without a seed, so it composes with parts, adapters and drivers alike.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedgen import records, seeds, tree
from fedgen.config.catalogue import task_file
from fedgen.errors import ClientError, ConfigError, DataError
from fedgen.gate import Gate
from fedgen.learner import Learner
from fedgen.measure import evaluate
from fedgen.model.source import cache_folder
from fedgen.planner import Planner
from fedgen.seeding import Seeding
from fedgen.synthesis.filters import Evidence
from fedgen.synthesis.likelihood import by_learner, opening
from fedgen.synthesis.making import Synthesis
from fedgen.synthesis.synthetic_set import SyntheticSet
from fedgen.task import Task
from fedgen.task_file import read_task
from fedgen.transport import Transport
from fedgen.trial import Trial
from fedgen.tuning import Tuned, take_turn, tune
from fedgen.types import Encoded, Example, Observer, Record, State

AT_ONCE = 256
"""Texts that one worker asks a model about; pieces do not depend on how many workers there are."""

FACT = "seeded"
"""Under this name a checkpoint's facts tell whether the run began with a seed."""


@dataclass(frozen=True)
class Material:
    """What a seed is tuned on.

    Attributes:
        examples: to learn from.
        held_out: to stop by.
        trial: public examples that are kept for the trial.
        made: the synthetic set; None if the generator is not asked.
    """

    examples: Sequence[Example]
    held_out: Sequence[Example]
    trial: Sequence[Example]
    made: SyntheticSet | None


@dataclass(frozen=True)
class Sowing:
    """Seeds a federation.

    Attributes:
        gate: what is known before the first round, and the server's learners.
        transport: reaches the clients.
        planner: decides how devices work that tell their memory; None if none does.
        public: examples that anybody may see.
        splits: examples to be measured on; no synthetic text may overlap with them.
        observe: is told of each thing as it happens.
    """

    gate: Gate
    transport: Transport
    planner: Planner | None
    public: Sequence[Example]
    splits: Mapping[str, Sequence[Example]]
    observe: Observer

    def sow(self, initial: State) -> tuple[State, list[Record]]:
        """The state with which the federation starts, and what the journal says of it: ``initial`` without a generator.

        Raises:
            FedgenError: the task or the generator is unusable, or a label of the task ends without an example.
        """
        if self.gate.ground.experiment.generator is None:
            return initial, []
        began = time.perf_counter()
        material = self._material()
        made = time.perf_counter()
        tuned, verdict = self._tuned(initial, material)
        trained = time.perf_counter()
        if tuned is not None and not verdict["reasons"]:
            trial = Trial(self.gate, self.transport, self.planner, material.trial, self.observe)
            verdict = trial.judge(initial, tuned.state)
        seconds = {"synthesis": made - began, "tuning": trained - made, "trial": time.perf_counter() - trained}
        line = {"kind": "seed", "round": 0, "seconds": seconds, "num_examples": len(material.examples), **verdict}
        line |= {"synthetic": None if material.made is None else material.made.summary()}
        if tuned is not None:
            line["tuning"] = {"turn": tuned.turn, "num_tokens": tuned.num_tokens, "losses": list(tuned.losses)}
            line["evaluation"] = {"before": self._measured(initial), "after": self._measured(tuned.state)}
        self.observe(line)
        if tuned is not None and verdict["accepted"]:
            return tuned.state, [line]
        warning = records.warning(
            0, f"the seed is refused, the federation starts without: {'; '.join(line['reasons'])}"
        )
        self.observe(warning)
        return initial, [line, warning]

    def heal(self, state: State, round: int) -> State:
        """A state after a round, moved towards what a turn on synthetic examples would make of it.

        Args:
            state: as aggregation left it.
            round: that is over.
        """
        seeding, experiment = self._seeding, self.gate.ground.experiment
        progress = (round - 1) / max(1, experiment.num_rounds - 1)
        when = ("healing", round, progress)
        turned, _ = take_turn(self.gate.ground, self.gate.workers, seeding.client, state, self._healing, when)
        return tree.add(state, tree.scale(tree.subtract(turned, state), seeding.healing_share))

    @functools.cached_property
    def _healing(self) -> list[Encoded]:
        """What the server trains on after rounds. Found once: that may take the generator's model."""
        task = read_task(task_file(self._seeding.task))
        made = self._synthetic(task, self._seeding.num_examples, self.gate.ground.experiment.seed)
        return self._encoded(made.examples())

    @property
    def _seeding(self) -> Seeding:
        seeding = self.gate.ground.experiment.seeding
        assert seeding is not None, "with a generator there is a seeding"
        return seeding

    def _material(self) -> Material:
        """Examples to learn from, to stop by and to judge by; no public one serves two ends."""
        seeding, seed = self._seeding, self.gate.ground.experiment.seed
        trial = self.public[::2][: seeding.num_held_out]
        kept = set(trial)
        pool = [example for example in self.public if example not in kept]
        if not seeding.is_synthetic:
            held_out = pool[::8][: seeding.num_held_out]
            rest = [example for example in pool if example not in set(held_out)][: seeding.num_examples]
            if not rest or not held_out:
                number = len(self.public)
                raise DataError(f"seeding.public_share is 1, and {number} examples are public; raise data.num_public")
            return Material(rest, held_out, trial, None)
        task = read_task(task_file(seeding.task))
        made = self._synthetic(task, seeding.num_examples, seed)
        num_held_out = max(seeding.num_held_out, len(task.labels))
        other = self._synthetic(task, num_held_out, seeds.integer(seed, "seeding", "held out"))
        examples = list(made.examples())
        num_public = round(len(examples) * seeding.public_share / (1 - seeding.public_share)) if pool else 0
        examples += [pool[place % len(pool)] for place in range(num_public)]
        return Material(examples, other.examples(), trial, made)

    def _synthetic(self, task: Task, num_examples: int, seed: int) -> SyntheticSet:
        """A set from the cache, or made now.

        Raises:
            FedgenError: a label ends empty, or the generator is for another kind of task.
        """
        generator = self.gate.ground.experiment.generator
        assert generator is not None, "without a generator nothing is sown"
        evidence = self._evidence(task)
        try:
            synthesis = Synthesis(task, generator, num_examples, seed, self._seeding.surplus, evidence=evidence)
        except ValueError as error:
            raise ConfigError(f"seeding.{error}") from error
        return synthesis.carry_out(cache_folder() / "synthetic", self.observe)

    def _evidence(self, task: Task) -> Evidence:
        """What drafts are held against: the model as it was loaded, and what it will be measured on."""
        base = self.gate.ground.base
        special = self.gate.workers.borrow(lambda learner: sorted(set(learner.tokenizer.all_special_tokens)))
        commands, before = task.kind == "commands", opening(task)

        def job(_: Learner, texts: tuple[str, ...]) -> tuple[tuple[str, ...], Sequence[float]]:
            # A worker's own learner has an adapter on.
            return texts, by_learner(base.learner(base.replica(private=False), {}), before)(texts)

        def likelihood(texts: Sequence[str]) -> list[float]:
            pieces = [tuple(texts[start : start + AT_ONCE]) for start in range(0, len(texts), AT_ONCE)]
            found = dict(self.gate.workers.map(job, dict.fromkeys(pieces)))
            return [value for piece in pieces for value in found[piece]]

        return Evidence(
            likelihood=likelihood if commands else None,
            likelihood_of=base.fingerprint if commands else "",
            evaluation=tuple(example for examples in self.splits.values() for example in examples),
            template_tokens=tuple(special),
        )

    def _tuned(self, initial: State, material: Material) -> tuple[Tuned | None, Record]:
        """The tuned state, and the verdict on it as far as tuning itself tells."""
        examples, held_out = self._encoded(material.examples), self._encoded(material.held_out)
        try:
            tuned = tune(self.gate.ground, self.gate.workers, initial, examples, held_out, self.observe)
        except ClientError as error:
            return None, {
                "accepted": False,
                "reasons": [f"tuning failed ({error.reason}); lower seeding.client.learning_rate"],
            }
        reasons = [] if tuned.turn else ["tuning did not lower the loss of held-out examples"]
        return tuned, {"accepted": not reasons, "reasons": reasons}

    def _encoded(self, examples: Sequence[Example]) -> list[Encoded]:
        """Token ids.

        Raises:
            DataError: none of them has an answer within the model's length.
        """
        found = [ids for ids in self.gate.workers.borrow(lambda learner: learner.encode(examples)) if ids is not None]
        if not found:
            raise DataError("no example of the seed has an answer within model.max_length; raise it")
        return found

    def _measured(self, state: State) -> Record:
        """What is followed round by round."""
        return evaluate(self.gate.ground.experiment, self.gate.workers, state, self.splits, whole=False)
