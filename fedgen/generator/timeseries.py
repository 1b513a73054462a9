"""Windows of sensor readings, healthy or with a fault whose kind is known since it was put there.

A healthy window is a level, a trend, a season and first-order autoregressive noise. The faults are those of Ni et al.,
"Sensor Network Data Fault Types", ACM Transactions on Sensor Networks 5(3), 2009, section 4, that a window can show:
spike, stuck-at, drift, missing readings and saturation. Every reading is one that the sensor can give. Levels, phases
and sizes are drawn afresh for each window, which is to time series what the random guidance scale is to the images of
GPT-FL (Zhang et al., 2023, arXiv 2306.02210).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

import fedgen
from fedgen import seeds
from fedgen.generator.ordering import draw_orders, require_kind
from fedgen.task import Draft, Order, Task
from fedgen.task_parts import Channel

Window = list[float | None]
"""Readings in order; None for one that is missing."""


@dataclass(frozen=True)
class Timeseries:
    """Readings of sensors with labelled faults, from trend, season and noise; no model, at once.

    Sizes are shares of the channel's usual range, from `usual_low` to `usual_high`.

    Attributes:
        season: largest amplitude of the season.
        trend: largest change over a window of a healthy sensor.
        autocorrelation: how much of the noise of a reading is left in the next one.
        fault_size: how far a spike or a drift departs from the truth, at least; at most it is twice that.
        per_order: windows of one label that are asked for together, at most.
    """

    season: float = 0.25
    trend: float = 0.1
    autocorrelation: float = 0.7
    fault_size: float = 0.8
    per_order: int = 16

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("season", "trend"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a share of the usual range, from 0 to 1")
        if not 0 <= self.autocorrelation < 1:
            raise ValueError(f"autocorrelation is {self.autocorrelation}; it must be at least 0 and below 1")
        if not self.fault_size > self.trend:
            raise ValueError(
                f"fault_size is {self.fault_size}; it must be above trend, {self.trend}, or a drift looks healthy"
            )
        if self.per_order < 1:
            raise ValueError(f"per_order is {self.per_order}; it must be at least 1")

    @property
    def kind(self) -> str:
        """`sensor`."""
        return "sensor"

    @property
    def licence(self) -> str:
        """Apache-2.0, as fedgen."""
        return "Apache-2.0 (arithmetic of fedgen)"

    def plan(self, task: Task, num_examples: int, seed: int) -> tuple[Order, ...]:
        """Orders for so many windows.

        Raises:
            ConfigError: the task is of another kind, or num_examples below 1.
        """
        require_kind(task, self.kind, "timeseries")
        return draw_orders(task, num_examples, seed, self.per_order)

    def generate(self, task: Task, orders: Iterable[Order], seed: int) -> Iterator[Draft]:
        """A window of the ordered channel and state for each draft."""
        for order in orders:
            for number, slots in enumerate(order.slots):
                rng = Random(seeds.integer(seed, "generator", "timeseries", order.index, order.seed, number))
                channel = task.channels[slots["channel"]]
                window = FAULT_OF[task.labels[order.label].fault](self, channel, self._healthy(task, channel, rng), rng)
                yield task.draft(order, number, task.render(slots["channel"], _spelt(task, channel, window)))

    def vary(self, task: Task, drafts: Iterable[Draft], degree: float, seed: int) -> Iterator[Draft]:
        """Each window moved and stretched, by a tenth of the usual range at most.

        Equal readings stay equal, missing ones missing, and those at an end of the scale stay there, so that no label
        changes.
        """
        for number, draft in enumerate(drafts):
            rng = Random(seeds.integer(seed, "generator", "timeseries", "vary", number, draft.order))
            name = draft.slots["channel"]
            channel = task.channels[name]
            before, _, after = task.render(name, "\0").partition("\0")
            shown = draft.text.removeprefix(before).removesuffix(after).split()
            window = [None if reading == task.missing else float(reading) for reading in shown]
            there = [reading for reading in window if reading is not None] or [0.0]
            middle = sum(there) / len(there)
            most = 0.1 * degree
            move, stretch = rng.uniform(-most, most) * _usual(channel), 1 + rng.uniform(-most, most)
            moved = [
                reading
                if reading is None or reading in (channel.low, channel.high)
                else _within(channel, middle + (reading - middle) * stretch + move)
                for reading in window
            ]
            yield replace(draft, text=task.render(name, _spelt(task, channel, moved))) if degree else draft

    def fingerprint(self) -> str:
        """Settings and version."""
        return f"{self!r} fedgen={fedgen.__version__}"

    def _healthy(self, task: Task, channel: Channel, rng: Random) -> Window:
        """A window of a sensor that works."""
        usual, num = _usual(channel), task.num_readings
        amplitude, slope = rng.uniform(0, self.season) * usual, rng.uniform(-self.trend, self.trend) * usual
        # The level leaves room for season and half of the trend, so that what is usual holds the whole course.
        room = min(amplitude + abs(slope) / 2, usual / 2)
        level = rng.uniform(channel.usual_low + room, channel.usual_high - room)
        phase = rng.uniform(0, 2 * math.pi)
        # Variance of the process is noise**2, from its first reading on.
        noise = rng.gauss(0, channel.noise)
        window: Window = []
        for place in range(num):
            season = amplitude * math.sin(phase + 2 * math.pi * place * channel.interval_s / channel.period_s)
            trend = slope * (place / (num - 1) - 0.5)
            window.append(_within(channel, level + season + trend + noise))
            fresh = rng.gauss(0, channel.noise * math.sqrt(1 - self.autocorrelation**2))
            noise = self.autocorrelation * noise + fresh
        return window

    def departure(self, channel: Channel, at: float, rng: Random) -> float:
        """How far a fault departs, to the side on which the scale has more room."""
        size = max(rng.uniform(1, 2) * self.fault_size * _usual(channel), 6 * channel.noise)
        up, down = channel.high - at, at - channel.low
        return min(size, up) if up >= down else -min(size, down)


def _none(option: Timeseries, channel: Channel, window: Window, rng: Random) -> Window:
    return window


def _spike(option: Timeseries, channel: Channel, window: Window, rng: Random) -> Window:
    """One to three readings far off, none beside another."""
    places = rng.sample(range(0, len(window), 2), min(rng.randint(1, 3), (len(window) + 1) // 2))
    return _changed(window, channel, {place: _at(window, place) for place in places}, option, rng)


def _changed(window: Window, channel: Channel, places: dict[int, float], option: Timeseries, rng: Random) -> Window:
    changed = list(window)
    for place, reading in sorted(places.items()):
        changed[place] = _within(channel, reading + option.departure(channel, reading, rng))
    return changed


def _stuck(option: Timeseries, channel: Channel, window: Window, rng: Random) -> Window:
    """From somewhere in the first half on, one value for at least half of the window."""
    num = len(window)
    begin = rng.randrange(num // 2)
    length = rng.randint(math.ceil(num / 2), num - begin)
    return [*window[:begin], *[window[begin]] * length, *window[begin + length :]]


def _drift(option: Timeseries, channel: Channel, window: Window, rng: Random) -> Window:
    """From somewhere in the first half on, further from the truth with every reading."""
    num = len(window)
    begin = rng.randrange(num // 2)
    size = option.departure(channel, _at(window, num - 1), rng)
    return [
        _within(channel, _at(window, place) + size * max(0.0, (place - begin) / (num - 1 - begin)))
        for place in range(num)
    ]


def _dropout(option: Timeseries, channel: Channel, window: Window, rng: Random) -> Window:
    """One or two gaps, together at most three fifths of the window."""
    gaps, num = list(window), len(window)
    for _ in range(rng.randint(1, 2)):
        length = rng.randint(max(1, num // 10), max(1, 3 * num // 10))
        begin = rng.randrange(num - length + 1)
        gaps[begin : begin + length] = [None] * length
    return gaps


def _saturation(option: Timeseries, channel: Channel, window: Window, rng: Random) -> Window:
    """The end of the scale that is further from what is usual, for a quarter to three quarters of the window."""
    num = len(window)
    up = channel.high - channel.usual_high >= channel.usual_low - channel.low
    length = rng.randint(math.ceil(num / 4), math.ceil(3 * num / 4))
    begin = rng.randrange(num - length + 1)
    return [*window[:begin], *[channel.high if up else channel.low] * length, *window[begin + length :]]


Fault = Callable[[Timeseries, Channel, Window, Random], Window]

FAULT_OF: Mapping[str, Fault] = {
    "none": _none,
    "spike": _spike,
    "stuck": _stuck,
    "drift": _drift,
    "dropout": _dropout,
    "saturation": _saturation,
}
"""A label's fault → what it does to a healthy window."""


def _at(window: Window, place: int) -> float:
    reading = window[place]
    assert reading is not None, "a healthy window has every reading"
    return reading


def _usual(channel: Channel) -> float:
    return channel.usual_high - channel.usual_low


def _within(channel: Channel, reading: float) -> float:
    return min(max(reading, channel.low), channel.high)


def _spelt(task: Task, channel: Channel, window: Window) -> str:
    """Readings as they stand in a text, rounded to the channel's digits and still within its range."""
    unit = 10.0**-channel.decimals
    words = []
    for reading in window:
        if reading is None:
            words.append(task.missing)
            continue
        rounded = round(reading, channel.decimals)
        rounded += unit * ((rounded < channel.low) - (rounded > channel.high))
        words.append(f"{round(rounded, channel.decimals) + 0.0:.{channel.decimals}f}")
    return " ".join(words)
