"""A checkpoint whose vectors lie in a file for each rank of the server: whole or not at all, and read in any slices."""

import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from asyncfeded.model.slices import Slice
from asyncfeded.store.checkpoint import newest, read_checkpoint, save, save_slice
from asyncfeded.store.checkpoint.slices import Vectors
from store.snapshots import a_snapshot, bits, flip, put, the_same

SENT = 30011 + 5
"""The model of a_snapshot, and what is a client's own behind it."""
VECTORS = ("B",)


def vectors_of(at):
    return Vectors(at.model, at.bases, at.own, {name: at.rule[name] for name in VECTORS})


def written(folder, at, borders):
    """A checkpoint in slices; where it lies."""
    (folder / "checkpoints").mkdir(exist_ok=True)
    lines = []
    for index, (start, stop) in enumerate(pairwise(borders)):
        part = vectors_of(at).cut(Slice(start, stop))
        mine = replace(at, model=part.model, bases=part.bases, own=part.own, rule=at.rule | part.rule, vectors=VECTORS)
        lines.append(save_slice(folder / "checkpoints", mine, index, Slice(start, stop)))
    path = folder / "checkpoints" / at.file_name
    save(path, replace(mine, layout=at.layout), lines)
    return path


@pytest.mark.parametrize("borders", [(0, SENT), (0, 20000, SENT), (0, 7, 30009, 30013, SENT, SENT)])
def test_slices_are_read_back_whole_and_in_any_other_slices(tmp_path, borders):
    at = a_snapshot()
    path = written(tmp_path, at, borders)
    whole = read_checkpoint(path)
    assert the_same(whole, replace(at, vectors=VECTORS))
    for held in (Slice(0, 100), Slice(15000, 30012), Slice(30011, SENT), Slice(SENT, SENT)):
        got, expected = vectors_of(read_checkpoint(path, held)), vectors_of(at).cut(held)
        assert [bits(each) for each in got] == [bits(each) for each in expected]


def test_a_slice_of_a_checkpoint_in_one_file(tmp_path):
    """With what the caller says are vectors."""
    at, held = a_snapshot(), Slice(30000, 30013)
    got = read_checkpoint(put(tmp_path, at), held, VECTORS)
    assert got.model.tobytes() == at.model[30000:].tobytes()
    assert dict(got.own)[1].tobytes() == dict(at.own)[1][:2].tobytes()
    assert got.rule["B"].tobytes() == at.rule["B"][30000:].tobytes()
    assert np.array_equal(got.rule["K"], at.rule["K"])


def damage(folder):
    flip(folder / "slice-0000000120-1.h5", 9000)


def lose(folder):
    (folder / "slice-0000000120-0.h5").unlink()


def swap(folder):
    """A slice of another checkpoint, undamaged."""
    (folder / "slice-0000000110-1.h5").replace(folder / "slice-0000000120-1.h5")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage, "slice-0000000120-1.h5: is damaged"),
        (lose, "slice-0000000120-0.h5: no such file"),
        (swap, "slice-0000000120-1.h5: is not the slice that its checkpoint was written with"),
    ],
)
def test_a_checkpoint_without_one_of_its_slices_is_none(tmp_path, harm, said):
    good, bad = (written(tmp_path, a_snapshot(rows), (0, 20000, SENT)) for rows in (110, 120))
    kept = (good.parent / "slice-0000000110-1.h5").read_bytes()
    harm(bad.parent)
    (good.parent / "slice-0000000110-1.h5").write_bytes(kept)
    found = newest(tmp_path)
    assert found.path == good
    assert len(found.damaged) == 1
    assert re.search(said, found.damaged[0])
