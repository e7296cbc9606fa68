"""A trace is valid for ui.perfetto.dev: slices of a track nest, arrows lie in slices; and it shows what the record knows."""

import gzip
import json
from collections import defaultdict

import numpy as np
import pytest

from asyncfeded.store.record import UPDATE
from asyncfeded.watch.trace import CHECKPOINTS, CLIENTS, FIRST, RECEIPTS, SERVER, TESTS, UPDATES, rounds, write_trace
from conftest import tables
from watch.runs import open_record, update


def check(path):
    """Whether a file is a valid trace. Returns its slices by track, in order: (name, start, end), microseconds."""
    raw = path.read_bytes()
    events = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["traceEvents"]
    slices, arrows, named = defaultdict(list), defaultdict(list), set()
    for event in events:
        track = event["pid"], event["tid"]
        if event["ph"] == "M":
            named.add(track)
        elif event["ph"] == "X":
            assert event["dur"] >= 0
            assert event["ts"] >= 0
            slices[track].append((event["name"], event["ts"], event["ts"] + event["dur"]))
        elif event["ph"] in "stf":
            arrows[event["id"]].append((event["ph"], track, event["ts"]))
        else:
            assert event["ph"] == "i"
        assert event["tid"] not in (0, event["pid"]) or event["name"] == "process_name"  # it would be shown as a main thread
    for track, found in slices.items():
        assert track in named
        found.sort(key=lambda one: (one[1], -one[2]))
        open_until = []
        for _, start, end in found:  # each begins behind the end of those before, or ends within them
            while open_until and open_until[-1] <= start + 1e-3:
                open_until.pop()
            assert not open_until or end <= open_until[-1] + 1e-3
            open_until.append(end)
    for ends in arrows.values():
        assert "".join(kind for kind, *_ in ends) in ("st", "stf")
        assert sorted(ends, key=lambda one: one[2]) == ends
        for _, track, at in ends:
            assert any(start - 0.02 <= at <= end + 0.02 for _, start, end in slices[track]), (track, at)
    return slices, arrows


def test_what_lies_between_two_updates_of_a_client():
    """One client on the wall clock. The second update was taken 4 s after the end of the first reply, of which it trained
    3 s: 1 s for two ways. The third had 2 s beside its training: so a way takes 0.5 s, and the third waited 1 s."""
    rows = [
        update(3.0, 0, version=1, compute_s=1.0, service_s=0.5, receive_s=0.25, measure_s=0.125, merge_s=0.25),
        update(7.5, 0, version=2, base_version=1, compute_s=3.0, service_s=0.5),
        update(11.0, 0, version=3, base_version=2, compute_s=1.0, service_s=0.5),
    ]
    times = rounds(tables(rows), "wall")
    assert times.ordered.tolist() == [0.0, 3.5, 8.0]
    assert times.began.tolist() == [0.5, 4.0, 8.5]
    assert times.trained.tolist() == [1.5, 7.0, 9.5]
    assert times.sent.tolist() == [2.0, 7.5, 10.0]
    assert times.answered.tolist()[:2] == [3.5, 8.0]
    assert np.isnan(times.answered[2])
    server = (times.received, times.taken, times.measured, times.merged, times.served)
    assert [float(column[0]) for column in server] == [2.75, 3.0, 3.125, 3.375, 3.5]


def test_a_reply_that_waits_for_others_leaves_with_the_update_that_it_carries():
    """Clients 0 and 1 with a barrier: client 0 is answered when client 1 is there; it starts from version 1."""
    rows = [
        update(1.0, 0, compute_s=1.0, service_s=0.25),
        update(2.0, 1, version=1, compute_s=2.0, service_s=0.25),
        update(4.0, 0, version=1, base_version=1, compute_s=1.5),
    ]
    times = rounds(tables(rows), "wall")
    assert times.ordered.tolist() == [0.0, 0.0, 2.25]
    assert times.answered.tolist()[0] == 2.25


def test_who_joins_late_does_nothing_before():
    """Client 1 is lost after its update at 2 s, and joins again at 6 s."""
    rows = [update(2.0, 1, version=1, compute_s=1.0), update(8.0, 1, version=2, base_version=1, compute_s=1.0)]
    events = [(0.0, at, kind, 1, 1, 0.0, b"") for at, kind in ((3.0, b"lost"), (6.0, b"joined"))]
    times = rounds(tables(rows, events=events), "wall")
    assert times.ordered.tolist() == [0.0, 6.0]
    assert times.answered.tolist()[0] == 2.0


@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_a_trace_is_valid(tmp_path, clock):
    """Two jobs: the second goes on from 6 s, and tests again what the first has tested behind that."""
    rng = np.random.default_rng(0)
    config = {"clock": clock} if clock == "wall" else {"clock": clock, "checkpoint": {"every_s": 1}}
    with open_record(tmp_path, 3, **config) as book:
        book.note(0.0, "began")
        version, base = 0, [0, 0, 0]
        for number, time_s in enumerate(np.sort(rng.random(60)) * 10):
            client, good = int(rng.integers(3)), number % 7 != 3
            version += good
            numbers = {"version": version, "base_version": base[client], "compute_s": rng.random() / 5, "service_s": 0.02}
            numbers |= {"receive_s": np.nan if number == 9 else 0.1, "measure_s": 0.005, "merge_s": 0.01 if good else 0.1}
            book.updates.append(update(time_s, client, **numbers, gamma=np.nan if number == 5 else 0.5, accepted=good))
            base[client] = version
        for time_s in (2.0, 5.9, 8.0):
            book.note(time_s, "evaluated", seconds=0.5, text="version 1")
        book.note(3.0, "checkpoint", seconds=0.25, text="checkpoint-1.h5")
        book.note(6.0, "began", text="checkpoint-1.h5")
        book.note(8.1, "evaluated", seconds=0.5, text="version 9")
        book.note(9.0, "lost", 1, text='goes on without client 1: "silent"')
    said = write_trace(tmp_path, tmp_path / "trace.json.gz")
    assert said.endswith(f"{'real' if clock == 'wall' else 'simulated'} seconds; open it in ui.perfetto.dev")
    slices, arrows = check(tmp_path / "trace.json.gz")
    names = {track: {name for name, *_ in found} for track, found in slices.items()}
    if clock == "wall":
        assert names[CLIENTS, FIRST] == {"receive", "train", "send", "wait"}
        assert [start for _, start, _ in slices[SERVER, TESTS]] == [2e6, 8.1e6]
        assert names[SERVER, CHECKPOINTS] == {"checkpoint"}
        assert (names[SERVER, RECEIPTS], len(slices[SERVER, RECEIPTS])) == ({"receive"}, 60)
    else:
        assert names[CLIENTS, FIRST] == {"train"}
    inside = {"measure", "merge", "reply"} if clock == "wall" else set()
    assert (names[SERVER, UPDATES], len(slices[SERVER, UPDATES])) == ({"update"} | inside, 60 * (1 + len(inside)))
    assert (len(arrows), sum(len(ends) == 3 for ends in arrows.values())) == (60, 57)


def test_an_empty_run_has_a_trace_and_a_file_that_cannot_be_written_is_told(tmp_path):
    open_record(tmp_path, 3).close()
    write_trace(tmp_path, tmp_path / "trace.json")
    assert check(tmp_path / "trace.json") == ({}, {})
    write_trace(tmp_path, tmp_path / "trace.json")  # again
    with pytest.raises(ValueError, match="cannot be written"):
        write_trace(tmp_path, tmp_path / "no" / "trace.json")
    for name in ("notes.json", "notes.json.gz"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match="is there already, and is no trace; move it away"):
            write_trace(tmp_path, tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
    assert UPDATE.names[0] == "time_s"
