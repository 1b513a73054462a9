import json

from hypothesis import given, settings
from hypothesis import strategies as st

from fedgen.report import summarise
from fedgen.report.records import Records
from fedgen.report.summary import summary_of


def test_a_whole_run(whole_run):
    summary = summarise(whole_run)
    assert (summary["name"], summary["status"], summary["seed"]) == ("homes", "finished", 1)
    assert (summary["rounds_done"], summary["num_rounds"]) == (2, 2)
    assert summary["followed"] == {"split": "new", "metric": "exact_match", "higher_is_better": True}
    assert summary["before"] == {"round": 0, "value": 0.0}
    assert summary["after"] == {"round": 2, "value": 0.5}
    assert summary["best"] == {"round": 1, "value": 0.6}
    assert summary["quality"] == [
        {"split": "new", "metric": "exact_match", "before": 0.0, "after": 0.5, "round": 2},
        {"split": "home", "metric": "exact_match", "before": 0.125, "after": 0.25, "round": 2},
        {"split": "home", "metric": "perplexity", "before": 20.0, "after": 2.5, "round": 2},
    ]
    assert summary["loss"] == 1.0


def test_totals_are_sums_over_rounds(whole_run):
    totals = summarise(whole_run)["totals"]
    assert (totals["bytes_down"], totals["bytes_up"], totals["num_refused"]) == (2000, 1500 - 500, 1)
    assert totals["seconds"] == {
        "compute": 12.0, "wire": 3.0, "wait": 6.0, "aggregate": 1.5, "evaluate": 4.5, "total": 24.0,
    }  # fmt: skip


def test_clients_and_owners(whole_run):
    summary = summarise(whole_run)
    two, ten = summary["clients"]
    assert (two["client"], two["num_rounds"], two["loss"], two["refused"]) == ("home-2", 2, 1.0, {})
    assert two["peak_memory_bytes"] == 5 * 10**8
    # The loss of the refused turn is no number, so the one before it is the last.
    assert (ten["client"], ten["loss"], ten["refused"]) == ("home-10", 1.5, {"non_finite_loss": 1})
    assert (ten["bytes_down"], ten["bytes_up"]) == (1000, 250)
    assert summary["owners"] == [
        {"owner": "home-2", "before": 0.0, "after": 0.25},
        {"owner": "home-10", "before": 0.125, "after": 0.75},
    ]
    assert summary["refusals"] == [{"round": 2, "client": "home-10", "reason": "non_finite_loss"}]
    assert summary["peak_memory_bytes"] == {"rounds": 10**9 + 2, "clients": 5 * 10**8}


def test_a_run_in_parts(run_in_parts):
    summary = summarise(run_in_parts)
    assert [(row["width"], row["held_bytes"], row["base_bytes"]) for row in summary["device_classes"]] == [
        (1.0, 4 * 10**8, 0), (0.5, 2 * 10**8, 100),
    ]  # fmt: skip
    assert (summary["coverage"]["round"], summary["coverage"]["held"], summary["coverage"]["never"]) == (2, 0.75, 0.125)
    assert summary["coverage"]["groups"][0] == {
        "tensors": "mlp.up_proj.weight", "num_tensors": 2, "held": 0.75, "never": 0.1875, "never_max": 0.25,
    }  # fmt: skip
    assert summary["gate"]["totals"]["enlarged"] == {"num_plans": 1, "num_clients": 2}
    assert summary["gate"]["round"] == 1


def test_a_run_without_parts(whole_run):
    summary = summarise(whole_run)
    assert summary["coverage"] is summary["gate"] is None
    assert [(row["width"], row["num_turns"], row["held_bytes"]) for row in summary["device_classes"]] == [
        (1.0, 4, None)
    ]


def test_best_is_lowest_where_lower_is_better(write_run, records):
    lines = [
        records[0](n, value, metric="loss", higher_is_better=False) for n, value in enumerate([3.0, 1.0, 2.0, 1.0])
    ]
    assert summarise(write_run("lower", lines))["best"] == {"round": 1, "value": 1.0}


def test_an_unfinished_run(write_run, records):
    summary = summarise(write_run("going", [records[0](0, 0.25), records[0](1)], num_rounds=9))
    assert (summary["status"], summary["rounds_done"], summary["num_rounds"]) == ("unfinished", 1, 9)
    assert summary["before"] == {"round": 0, "value": 0.25}
    assert summary["after"] is None
    assert summary["quality"][0]["after"] is None


def test_no_round_at_all(write_run):
    summary = summarise(write_run("empty", []))
    assert summary["followed"] is summary["before"] is summary["best"] is summary["loss"] is None
    assert summary["clients"] == summary["quality"] == summary["history"] == []
    assert summary["totals"]["bytes_up"] is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = ("loss", "seconds", "evaluation", "metric", "refused", "num_examples", "bytes_up", "peak_memory_bytes")
numbers = st.dictionaries(st.sampled_from(["a", "owners"]), values, max_size=2)


def named(entries):
    return values | st.dictionaries(st.sampled_from(["a.0.w", "a.1.w", "ffn"]), entries, max_size=3)


shares = values | st.fixed_dictionaries({"held": values, "never": values})
plans = st.dictionaries(st.sampled_from(["width", "loss", "clients", "decision", "to"]), values)
rounds = st.fixed_dictionaries(
    {"kind": st.just("round"), "round": st.integers(0, 5)},
    optional={
        **dict.fromkeys(fields, values),
        "evaluation": st.dictionaries(st.sampled_from("xy"), numbers, max_size=2),
        "coverage": values | st.fixed_dictionaries({"units": named(values), "tensors": named(shares)}),
        "gate": values | st.fixed_dictionaries({"limit": values, "plans": st.lists(plans | values, max_size=3)}),
    },
)
clients = st.fixed_dictionaries(
    {"kind": st.just("client"), "round": st.integers(0, 5), "client": st.text(max_size=3)},
    optional=dict.fromkeys((*fields, "width", "held_bytes", "train_bytes", "base_bytes"), values),
)


@settings(max_examples=150)
@given(st.lists(rounds, max_size=4), st.lists(clients, max_size=4))
def test_whatever_was_recorded_the_summary_is_strict_json(tmp_path_factory, rounds, clients):
    folder = tmp_path_factory.getbasetemp()
    summary = summary_of(Records(folder, {}, "", {}, rounds=tuple(rounds), clients=tuple(clients)))
    text = json.dumps(summary, allow_nan=False)
    assert json.loads(text)["rounds_done"] == max((record["round"] for record in rounds), default=0)
