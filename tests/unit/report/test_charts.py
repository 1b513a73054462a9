import re

from fedgen.report.charts import Curve, curves, is_share, spread, stack


def points_on(svg):
    """Corner points of the lines and bars that are drawn in the colour of a series."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*var\(--series', svg, re.DOTALL)
    return [tuple(map(float, pair)) for path in paths for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]


def test_a_rising_curve_rises_on_paper():
    chart = curves([Curve("a", [(0, 0.0), (1, 0.5), (2, 1.0)])], share=True)
    (x0, y0), (x1, y1), (x2, y2) = points_on(chart.svg)[:3]
    assert x0 < x1 < x2
    # Upright coordinates of a drawing grow downwards.
    assert y0 > y1 > y2
    assert abs((y0 - y1) - (y1 - y2)) < 1e-3


def test_colours_are_variables_and_nothing_reaches_out():
    chart = curves([Curve("a", [(0, 1.0), (1, 2.0)]), Curve("b", [(0, 2.0), (1, 3.0)], low=[1, 2], high=[3, 4])])
    assert not re.search(r"#[0-9a-f]{6}\b", chart.svg.replace("url(#", ""))
    assert "http" not in chart.svg
    assert {"var(--series-0)", "var(--series-1)", "var(--ink-soft)"} <= set(re.findall(r"var\(--[\w-]+\)", chart.svg))


def test_same_numbers_same_bytes():
    drawn = [Curve("a", [(0, 1.0), (1, 2.0)])]
    assert curves(drawn).svg == curves(drawn).svg


def test_a_legend_only_where_there_is_something_to_tell_apart():
    one, two = Curve("a", [(0, 1.0)]), Curve("b", [(0, 2.0), (3, 1.0)], sparse=True)
    assert curves([one]).legend == ()
    assert [(entry.label, entry.colour, entry.style) for entry in curves([one, two]).legend] == [
        ("a", 0, "solid"), ("b", 1, "dotted"),
    ]  # fmt: skip
    many = curves([Curve(str(n), [(0, float(n))]) for n in range(10)]).legend
    assert (many[8].colour, many[8].style) == (0, "dashed")


def test_nothing_to_draw_is_no_chart():
    assert curves([Curve("a", [])]) is None
    assert spread({}) is None
    assert spread({str(n): [] for n in range(20)}) is None
    assert stack({"a": []}, unit="bytes") is None
    assert stack({"a": [(0, 0)]}, unit="seconds") is None


def test_many_clients_become_a_median_and_two_bands():
    few = spread({f"home-{n}": [(0, 0.0), (1, n / 8)] for n in range(8)})
    assert [entry.label for entry in few.legend] == [f"home-{n}" for n in range(8)]
    many = spread({f"home-{n}": [(0, 0.0), (1, n / 8)] for n in range(9)})
    assert [entry.label for entry in many.legend] == ["median", "middle half", "all 9"]


def test_a_median_lies_in_the_middle_of_its_band():
    svg = spread({str(n): [(1, float(n)), (2, float(n))] for n in range(9)}).svg
    line = re.search(r'<path d="([^"]*)"[^>]*fill: none; stroke: var\(--series-0\)', svg)
    heights = [y for _, y in points_on(svg)]
    median = float(re.search(r"[ML] [-\d.]+ ([-\d.]+)", line[1])[1])
    assert abs(median - (min(heights) + max(heights)) / 2) < 0.01


def test_parts_stand_on_each_other():
    svg = stack({"down": [(1, 3000)], "up": [(1, 1000)]}, unit="bytes").svg
    bars = re.findall(r'<path d="([^"]*)"[^>]*fill: var\(--series-(\d)\)', svg, re.DOTALL)
    spans = {}
    for path, colour in bars:
        heights = [float(y) for y in re.findall(r"[ML] [-\d.]+ ([-\d.]+)", path)]
        spans[colour] = (min(heights), max(heights))
    assert abs(spans["0"][0] - spans["1"][1]) < 1e-3
    down, up = (high - low for low, high in (spans["0"], spans["1"]))
    assert abs(down - 3 * up) < 1e-2
    assert " kB</text>" in svg


def test_more_rounds_than_bars_become_areas():
    svg = stack({"down": [(n, 10) for n in range(200)]}, unit="seconds").svg
    assert len(re.findall(r"fill: var\(--series-0\)", svg)) == 1


def test_shares_are_told_from_other_numbers():
    assert is_share([(0, 0.0), (1, 1.0)], higher_is_better=True)
    assert not is_share([(0, 0.5)], higher_is_better=False)
    assert not is_share([(0, 1.5)], higher_is_better=True)
    assert not is_share([], higher_is_better=True)
