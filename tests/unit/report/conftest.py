"""Run folders with known numbers."""

import json
from pathlib import Path

import pytest


def round_record(round, quality=None, *, split="new", metric="exact_match", **more):
    seconds = {"compute": 4.0, "wire": 1.0, "wait": 2.0, "aggregate": 0.5, "evaluate": 1.5, "total": 8.0}
    evaluation = {} if quality is None else {split: {metric: quality}}
    return {
        "kind": "round", "round": round, "num_clients": 2, "num_refused": 0,
        "loss": None if round == 0 else 2.0 / round, "bytes_down": 1000,
        "bytes_up": 500, "seconds": seconds, "peak_memory_bytes": 10**9 + round,
        "metric": metric, "higher_is_better": True, "evaluation": evaluation,
    } | more  # fmt: skip


def client_record(round, client, **more):
    return {
        "kind": "client", "round": round, "client": client, "num_examples": 8, "loss": 1.5, "bytes_down": 500,
        "bytes_up": 250, "seconds": {"compute": 2.0, "wire": 0.5, "wait": 1.0}, "peak_memory_bytes": 4 * 10**8,
        "refused": None,
    } | more  # fmt: skip


@pytest.fixture
def records():
    """Makers of the records of a round and of a client."""
    return round_record, client_record


@pytest.fixture
def write_run(tmp_path):
    """Writes a run folder and returns its path."""

    def write(name, lines, *, seed=1, num_rounds=2, rate=0.001, wire="dense", config="", torn="") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "experiment.yaml").write_text(
            "_target_: fedgen.experiment.Experiment\nname: homes\n"
            f"seed: {seed}\nnum_rounds: {num_rounds}\ncohort_size: 2\n"
            f"client:\n  _target_: fedgen.client.first_order.FirstOrder\n  learning_rate: {rate}\n"
            f"wire:\n  _target_: fedgen.wire.{wire}.Any\n{config}"
        )
        (folder / "environment.json").write_text('{"versions": {"python": "3.11"}, "created": "2026-11-23"}')
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
        return folder

    return write


@pytest.fixture
def run_in_parts(write_run):
    """Two rounds of a narrow and a whole client: what was held, what it cost, and what the gate decided."""
    narrow = {"width": 0.5, "held_bytes": 2 * 10**8, "train_bytes": 3 * 10**7, "base_bytes": 100}
    whole = {"width": 1.0, "held_bytes": 4 * 10**8, "train_bytes": 6 * 10**7, "base_bytes": 0}
    never = {"model.layers.0.mlp.up_proj.weight": 0.5, "model.layers.1.mlp.up_proj.weight": 0.25, "model.norm": 0.0}
    gate = {
        "limit": 1.0, "base_loss": 3.0,
        "plans": [
            {"width": 0.5, "loss": 3.5, "clients": 1, "decision": "kept", "to": None},
            {"width": 0.25, "loss": 5.0, "clients": 2, "decision": "enlarged", "to": 0.5},
            {"width": 0.125, "loss": 9.0, "clients": 3, "decision": "refused", "to": None},
        ],
    }  # fmt: skip
    lines = [round_record(0, 0.0)]
    for at in (1, 2):
        coverage = {
            "units": {"ffn": [1.0, 0.5] if at == 1 else [0.5, 1.0], "kv": [0.75, 0.75]},
            "tensors": {name: {"held": 0.75, "never": share / at} for name, share in never.items()},
        }
        lines += [
            client_record(at, "home-2", **narrow), client_record(at, "home-10", **whole),
            round_record(at, 0.25 * at, coverage=coverage, **({"gate": gate} if at == 1 else {})),
        ]  # fmt: skip
    return write_run("parts", lines)


@pytest.fixture
def whole_run(write_run):
    """Two rounds, two homes, one refusal, and an end."""
    owners = {"home-2": {"exact_match": 0.25}, "home-10": {"exact_match": 0.75}}
    rounds = [
        round_record(0, 0.0, num_clients=0, bytes_down=0, bytes_up=0),
        round_record(1, 0.6),
        round_record(2, 0.5, num_refused=1, higher_is_better=True),
    ]
    rounds[0]["evaluation"]["new"]["owners"] = {"home-2": {"exact_match": 0.0}, "home-10": {"exact_match": 0.125}}
    rounds[2]["evaluation"]["new"]["owners"] = owners
    rounds[0]["evaluation"]["home"] = {"exact_match": 0.125, "perplexity": 20.0}
    rounds[2]["evaluation"]["home"] = {"exact_match": 0.25, "perplexity": 2.5}
    lines = [
        rounds[0],
        client_record(1, "home-10"), client_record(1, "home-2", loss=1.25), rounds[1],
        client_record(2, "home-10", refused="non_finite_loss", loss=float("nan"), bytes_up=0),
        client_record(2, "home-2", loss=1.0, peak_memory_bytes=5 * 10**8), rounds[2],
        {"kind": "warning", "round": 1, "text": "home-2 was slow"},
        {"kind": "conversation", "round": 2, "text": "turn it on", "expected": "On()", "before": "Sure!",
         "after": "On()"},
        {"kind": "end", "round": 2, "seconds": 24.0},
    ]  # fmt: skip
    return write_run("whole", lines)
