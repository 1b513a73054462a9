import re

import pytest

from fedgen.report.heat import NUM_SHADES, heat_map, opacity, shaded


def area(rectangle):
    left, right, bottom, top = rectangle
    return (right - left) * (top - bottom)


def test_a_window_that_moves_is_a_stair():
    rows = {at: [1.0 if stretch == (at - 1) % 4 else 0.0 for stretch in range(4)] for at in range(1, 6)}
    assert shaded(rows)[NUM_SHADES] == [
        (0.5, 1.5, 0, 25), (1.5, 2.5, 25, 50), (2.5, 3.5, 50, 75), (3.5, 4.5, 75, 100), (4.5, 5.5, 0, 25),
    ]  # fmt: skip


def test_neighbours_of_one_shade_are_one_rectangle():
    same = {at: [0.5, 0.5, 0.0] for at in range(1, 41)}
    assert shaded(same) == {10: [(0.5, 40.5, 0, 100 * 2 / 3)], 0: [(0.5, 40.5, 100 * 2 / 3, 100)]}


def test_rectangles_cover_every_known_cell_once():
    rows = {at: [(at * stretch % 7) / 6 for stretch in range(9)] for at in range(20)}
    rows[3][2] = None
    painted = sum(area(rectangle) for rectangles in shaded(rows).values() for rectangle in rectangles)
    assert painted == pytest.approx((20 * 9 - 1) * 100 / 9)


@pytest.mark.parametrize(
    ("value", "shade"), [(0, 0), (1e-9, 1), (0.05, 1), (0.5, 10), (1, 20), (1.5, 20), (-0.5, 0), (1e99, 20)]
)
def test_even_the_least_share_differs_from_none(value, shade):
    assert list(shaded({1: [value]})) == [shade]


def test_shades_grow_from_faint_to_full():
    shades = [opacity(shade) for shade in range(1, NUM_SHADES + 1)]
    assert shades == sorted(shades)
    assert 0.1 < shades[0] < 0.3
    assert shades[-1] == 1


def test_many_rounds_share_columns_by_their_mean():
    rows = {at: [float(at % 2), 1.0] for at in range(1, 201)}
    assert shaded(rows) == {10: [(0.5, 200.5, 0, 50)], 20: [(0.5, 200.5, 50, 100)]}


def test_a_round_that_was_not_recorded_stays_blank():
    assert shaded({1: [1.0], 3: [1.0], 4: [None]}) == {20: [(0.5, 1.5, 0, 100), (2.5, 3.5, 0, 100)]}


def test_nothing_known_is_no_map():
    assert heat_map({}) is None
    assert heat_map({1: [None, None], 2: [None, None]}) is None


def test_on_paper_first_units_lie_at_the_bottom_and_rounds_go_right():
    chart = heat_map({1: [1.0, 0.0], 2: [0.0, 1.0]})
    path = re.search(r'<path d="([^"]*)"[^>]*fill: var\(--series-0\)', chart.svg)[1]
    corners = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path)]
    first, second = corners[:4], corners[4:]
    assert max(x for x, _ in first) == min(x for x, _ in second)
    # Upright coordinates of a drawing grow downwards.
    assert min(y for _, y in first) == max(y for _, y in second)


def test_it_takes_its_colours_from_the_page_and_reaches_for_nothing():
    chart = heat_map({1: [1.0, 0.3, 0.0]})
    assert not re.search(r"#[0-9a-f]{6}\b", chart.svg.replace("url(#", ""))
    assert "http" not in chart.svg
    assert {"var(--series-0)", "var(--line)", "var(--ink-soft)"} <= set(re.findall(r"var\(--[\w-]+\)", chart.svg))
    assert [entry.style for entry in chart.legend] == ["ground", "scale"]
    assert chart.svg == heat_map({1: [1.0, 0.3, 0.0]}).svg


def test_a_long_run_makes_a_small_drawing():
    rows = {at: [(at * 37 + stretch * 101) % 64 / 64 for stretch in range(32)] for at in range(1000)}
    assert len(heat_map(rows).svg) < 400_000
