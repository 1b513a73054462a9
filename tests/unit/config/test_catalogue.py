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
        "evaluation",
        "export",
        "federation",
    ]


def test_every_folder_of_configs_is_a_stage():
    folders = {path.name for path in catalogue.shipped("configs").iterdir() if path.is_dir()}
    assert folders == {*catalogue.defaults(), "recipe"}


def test_recipes_say_what_they_are():
    assert "random two-layer model" in catalogue.recipes()["tiny"]
