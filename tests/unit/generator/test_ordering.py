"""What is asked for: values in turn, forms until they have nothing new to say, labels alternating."""

from collections import Counter

from fedgen.generator.ordering import draw_orders
from fedgen.task import Task
from fedgen.task_parts import Form, Label, Slot

FEW = Form("All()", ("go", "go on"))
MANY = Form("One(who={who})", ("go to {who}", "{who}"))
TASK = Task(
    "walks",
    "commands",
    "Walks.",
    {"walk": Label("walk", (FEW, MANY)), "stop": Label("stop", (Form("Stop()", ("stop",)),))},
    {"who": Slot("whom", {name: name for name in ("anna", "ben", "cleo", "dan", "eve")})},
    tones={"plain": ("{text}",), "loud": ("{text}!", "hey, {text}")},
)


def test_a_form_is_asked_for_no_oftener_than_it_has_sentences():
    """Two texts in three wrappings are six sentences; the rest goes to the form that has thirty."""
    orders = [order for order in draw_orders(TASK, 60, 0, 4) if order.label == "walk"]
    asked = Counter()
    for order in orders:
        asked[order.form] += order.num
    assert asked == {0: 6, 1: 24}


def test_what_has_been_said_is_said_again_if_so_much_is_wanted():
    orders = draw_orders(TASK, 200, 0, 4)
    assert sum(order.num for order in orders if order.label == "stop") == 100


def test_every_value_comes_before_one_comes_again():
    said = [slots["who"] for order in draw_orders(TASK, 60, 0, 4) for slots in order.slots if slots]
    for begin in range(0, len(said) - 4, 5):
        assert sorted(said[begin : begin + 5]) == ["anna", "ben", "cleo", "dan", "eve"]


def test_labels_take_turns_and_tones_and_lengths_alternate():
    orders = draw_orders(TASK, 60, 0, 4)
    shared = 2 * min(Counter(order.label for order in orders).values())
    assert [order.label for order in orders[:shared]] == ["walk", "stop"] * (shared // 2)
    walks = [order.attributes for order in orders if order.label == "walk"]
    for name in ("tone", "length"):
        assert all(len({walks[n][name], walks[n + 1][name]}) == 2 for n in range(0, len(walks) - 1, 2))


def test_no_order_is_larger_than_is_wanted_and_small_plans_have_every_form():
    assert {order.num for order in draw_orders(TASK, 400, 0, 7)} <= set(range(1, 8))
    assert {order.form for order in draw_orders(TASK, 4, 0, 16) if order.label == "walk"} == {0, 1}


def test_each_order_has_a_seed_of_its_own():
    seeds = [order.seed for order in draw_orders(TASK, 60, 0, 4)]
    assert len(set(seeds)) == len(seeds)
