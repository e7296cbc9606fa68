"""What the panels of many clients and of few show, by hand."""

import numpy as np

from asyncfeded.plots.clients import _draw_updates, _smooth
from asyncfeded.store.record import UPDATE


class Axis:
    """Axes that note what is drawn on them, a line as `plot`, an area by its label."""

    def __init__(self):
        self.said = {}

    def fill_between(self, *values, label, **style):
        self.said[label] = values

    def plot(self, *values, **style):
        self.said["plot"] = values

    def legend(self, **style):
        pass

    def set(self, **words):
        pass


def test_the_updates_of_many_clients_spread_by_hand():
    """Client 0 makes every second of 120 updates, client 1 every fourth, clients 2 and 3 every eighth: 60, 30, 15, 15."""
    merged = np.zeros(120, UPDATE)
    merged["time_s"], merged["client"] = np.arange(120), [0, 1, 0, 2, 0, 1, 0, 3] * 15
    axis = Axis()
    _draw_updates(merged, 5, axis)
    assert axis.said["plot"][0] == [19, 39, 59, 79, 99, 119]
    assert [float(y[-1]) for y in (*axis.said["all clients"][1:], *axis.said["the middle half"][1:])] == [0, 60, 15, 30]
    assert axis.said["plot"][1][-1] == 15


def test_the_running_median_is_shorter_at_the_ends():
    """Of 5, 1, 4 by three: the medians of (5, 1), (5, 1, 4) and (1, 4)."""
    assert _smooth(np.array([5.0, 1.0, 4.0]), width=3).tolist() == [3.0, 4.0, 2.5]
