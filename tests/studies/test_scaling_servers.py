"""How many server ranks are needed: worked by hand, and against measured servers that the fit has not seen."""

import csv
from pathlib import Path

import pytest

from asyncfeded.studies.scaling.grid import Wanted
from asyncfeded.studies.scaling.queueing import mean_values
from asyncfeded.studies.scaling.servers import Cost, Measured, fit, link_s, needed, times

NOTHING = Cost(0.0, 0.0, 0.0)
PUBLISHED = Path(__file__).parents[2] / "docs" / "scaling" / "servers.csv"


def wanted(**keys):
    """25 million parameters, 100 MB, take 0.8 s of a link of 1 Gbit/s."""
    return Wanted(**{"params": 25_000_000, "clients": 4, "round_s": 0.0, "link_gbit": 1.0} | keys)


def test_a_link_is_shared_by_as_many_as_there_are_server_ranks_or_hosts_of_clients():
    assert [link_s(wanted(), ranks) for ranks in (1, 2, 4, 8)] == pytest.approx([0.8, 0.4, 0.2, 0.2])
    assert link_s(wanted(hosts=2), 4) == pytest.approx(0.4)
    assert link_s(wanted(link_gbit=0.0), 1) == 0.0


def test_an_update_is_served_by_what_takes_longest_and_the_rest_is_latency():
    """There and back 1.6 s and 0.1 + 0.025 s of a processor; one link, or half of each of two, is the service."""
    cost = Cost(0.1, 1e-9, 0.02)
    assert times(cost, wanted(round_s=3.0), 1)[:2] == pytest.approx((0.8, 0.02 + 0.125 + 0.8))
    assert times(cost, wanted(round_s=3.0), 2)[:2] == pytest.approx((0.4, 0.02 + 0.1125 + 1.2))
    assert times(cost, wanted(link_gbit=0.0), 2)[:2] == pytest.approx((0.1125, 0.02))


@pytest.mark.parametrize(
    ("keys", "ranks"),
    [
        ({"clients": 2}, 1),  # one link takes one while it gives another
        ({}, 2),
        ({"clients": 8}, 4),
        ({"clients": 8, "round_s": 4.0}, 2),  # (4 + 1.6) / 0.8 = 7 clients saturate one
        ({"clients": 8, "hosts": 4}, 4),
        ({"clients": 9, "hosts": 4}, 0),  # the links of the clients are saturated then
    ],
)
def test_the_links_need_so_many_server_ranks(keys, ranks):
    assert needed(NOTHING, wanted(**keys)) == ranks


@pytest.mark.parametrize(("clients", "ranks"), [(91, 1), (92, 2), (167, 2), (168, 3), (286, 4), (287, 0)])
def test_the_processor_needs_so_many_server_ranks(clients, ranks):
    """1 ms, and 10 ms / S: S ranks are saturated by 1 + 1 / (0.001 + 0.01 / S) clients. The model has 4 chunks."""
    planned = wanted(params=1_000_000, clients=clients, round_s=1.0, link_gbit=0.0)
    assert needed(Cost(1e-3, 1e-8, 0.0), planned) == ranks


def test_what_an_update_takes_is_fitted():
    """On the line 1 ms + 2 ms per million numbers of a slice; of the latency what a model without parameters has."""
    runs = [Measured(1_000_000, 1, 3e-3, 6e-3), Measured(4_000_000, 2, 5e-3, 12e-3), Measured(3_000_000, 1, 7e-3, 10e-3)]
    assert fit(runs) == pytest.approx((1e-3, 2e-9, 4e-3))
    assert fit(runs[:1]) == pytest.approx((0.0, 3e-9, 0.0))  # nothing tells the two apart
    assert fit([Measured(1, 1, 0.0, 0.0), Measured(3, 1, 0.3, 0.0)]) == pytest.approx((0.0, 0.09, 0.0))  # not below 0
    assert fit([Measured(1, 1, 0.3, 0.0), Measured(3, 1, 0.1, 0.0)]) == pytest.approx((0.2, 0.0, 0.0))


def test_a_single_server_rank_predicts_measured_ones_of_two_and_four():
    """The rate of the links is that at which the first row, of one server rank, comes out; five others are predicted."""
    rows = [
        {name: float(value) for name, value in row.items()}
        for row in csv.DictReader(PUBLISHED.read_text(encoding="utf-8").splitlines())
    ]

    def predicted(row, gbit):
        names = ("params", "clients", "round_s", "hosts")
        return mean_values(
            times(NOTHING, wanted(link_gbit=gbit, **{name: row[name] for name in names}), int(row["servers"])),
            int(row["clients"]),
        ).updates_per_s

    gbit = rows[0]["updates_per_s"] / predicted(rows[0], 1.0)
    assert [(row["clients"], row["servers"]) for row in rows] == [(4, 1), (4, 2), (4, 4), (8, 1), (8, 2), (8, 4)]
    for row in rows[1:]:
        assert predicted(row, gbit) == pytest.approx(row["updates_per_s"], rel=0.2), row
