import pytest

from fedgen.report.devices import device_classes, has_late, has_parts


def test_one_row_per_width_the_widest_first(records):
    turn = records[1]
    small, large = {"width": 0.25, "held_bytes": 100, "train_bytes": 10}, {"held_bytes": 400, "train_bytes": 40}
    rows = device_classes(
        [
            turn(1, "a", **small, bytes_down=300, base_bytes=200, bytes_up=60, loss=3.0),
            turn(1, "b", **large),
            turn(2, "a", **small | {"held_bytes": 110}, bytes_down=100, base_bytes=0, bytes_up=20, loss=2.0,
                 num_examples=6, peak_memory_bytes=7 * 10**8, seconds={"compute": 4.0}),
            turn(2, "c", **small, bytes_down=200, base_bytes=40, bytes_up=40, loss=1.0, num_examples=2),
        ]
    )  # fmt: skip
    assert rows == [
        {"width": 1.0, "num_clients": 1, "num_turns": 1, "held_bytes": 400, "train_bytes": 40,
         "peak_memory_bytes": 4 * 10**8, "bytes_down": 500, "base_bytes": None, "bytes_up": 250, "staleness": None,
         "seconds_compute": 2.0, "loss": 1.5, "loss_round": 1},
        {"width": 0.25, "num_clients": 2, "num_turns": 3, "held_bytes": 110, "train_bytes": 10,
         "peak_memory_bytes": 7 * 10**8, "bytes_down": 200, "base_bytes": 80, "bytes_up": 40, "staleness": None,
         "seconds_compute": pytest.approx(8 / 3), "loss": pytest.approx((6 * 2.0 + 2 * 1.0) / 8), "loss_round": 2},
    ]  # fmt: skip
    assert has_parts(rows)


def test_a_client_may_change_its_class(records):
    rows = device_classes([records[1](1, "a", width=0.5), records[1](2, "a", width=1)])
    assert [(row["width"], row["num_clients"], row["num_turns"]) for row in rows] == [(1, 1, 1), (0.5, 1, 1)]


def test_an_older_run_has_one_class_without_parts(records):
    rows = device_classes([records[1](1, "a"), records[1](1, "b")])
    assert [(row["width"], row["num_clients"], row["held_bytes"]) for row in rows] == [(1.0, 2, None)]
    assert not has_parts(rows)
    assert device_classes([]) == []
    assert not has_parts([])


def test_one_width_below_one_is_parts(records):
    assert has_parts(device_classes([records[1](1, "a", width=0.5)]))


def test_refused_turns_cost_bytes_and_say_no_loss(records):
    turns = [records[1](1, "a", loss=2.0), records[1](2, "a", loss=9.0, refused="too_large", bytes_up=0)]
    row = device_classes(turns)[0]
    assert (row["bytes_up"], row["loss"], row["loss_round"]) == (125, 2.0, 1)


def test_what_is_unknown_is_none(records):
    turn = records[1](1, "a", width="wide", loss=None, num_examples=None, bytes_down=None, bytes_up="x", seconds=None,
                      peak_memory_bytes=0, held_bytes=True, train_bytes=float("nan"))  # fmt: skip
    row = device_classes([turn])[0]
    assert row.pop("width") == 1.0
    assert (row.pop("num_clients"), row.pop("num_turns")) == (1, 1)
    assert set(row.values()) == {None}


def test_losses_without_examples_count_alike(records):
    turns = [records[1](1, name, loss=loss, num_examples=0) for name, loss in (("a", 1.0), ("b", 2.0))]
    assert device_classes(turns)[0]["loss"] == 1.5


def test_how_late_the_replies_of_a_class_came(records):
    turn = records[1]
    rows = device_classes(
        [turn(1, "a", width=1.0, asked=1), turn(3, "b", width=0.5, asked=1), turn(4, "c", width=0.5, asked=4)]
    )
    assert [row["staleness"] for row in rows] == [0, 1.0]
    assert has_late(rows)
    assert not has_late(rows[:1])
    assert not has_late(device_classes([turn(1, "a")]))
