"""What there is: stages, options, recipes."""

from fedgen.config import catalogue


def test_stages_come_in_the_order_in_which_data_flows():
    assert list(catalogue.defaults()) == [
        "fleet",
        "data",
        "partition",
        "model",
        "adapter",
        "extraction",
        "client",
        "selection",
        "wire",
        "aggregation",
        "generator",
        "evaluation",
        "export",
        "federation",
    ]


def test_a_stage_that_may_be_left_out_is_left_out_by_default():
    assert [stage for stage, option in catalogue.defaults().items() if option == "null"] == ["generator"]


def test_every_folder_of_configs_is_a_stage():
    folders = {path.name for path in catalogue.shipped("configs").iterdir() if path.is_dir()}
    assert folders == {*catalogue.defaults(), "recipe", "task"}


def test_recipes_say_what_they_are():
    assert "random two-layer model" in catalogue.recipes()["tiny"]
