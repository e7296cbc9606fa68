"""A checkpoint that somebody else has made, with a checksum that is right, is refused in one sentence, or read."""

import hashlib

import h5py
import numpy as np
import pytest

from asyncfeded.store.checkpoint import describe_checkpoint, newest
from asyncfeded.store.sealed import HEAD, _head
from conftest import METRICS
from store.snapshots import a_snapshot, put, the_same

SHAPE = (150, 200)


def attribute(name, value):
    return lambda file, folder: file.attrs.__setitem__(name, value)


def column(name, value, client=0):
    """Another value in the table of the clients."""

    def edit(file, folder):
        clients = file["clients"][:]
        clients[name][client] = value
        file["clients"][...] = clients

    return edit


def instead(name, make):
    """Something else in the place of an array."""

    def edit(file, folder):
        del file[name]
        make(file, name, folder)

    return edit


def array(name, values):
    return instead(name, lambda file, name, folder: file.__setitem__(name, values))


def both(group, numbers, rows):
    """Other rows of a group, and their numbers."""

    def edit(file, folder):
        for name, values in (("numbers", numbers), ("rows", rows)):
            del file[group][name]
            file[group][name] = values

    return edit


def elsewhere(folder):
    """A file of the same numbers elsewhere, which only this user can read."""
    with h5py.File(folder / "secret.h5", "w") as file:
        file["w"] = np.full(SHAPE, 7, np.float32)
    (folder / "secret.raw").write_bytes(np.full(SHAPE, 9, np.float32).tobytes())
    return str(folder / "secret.h5"), str(folder / "secret.raw")


def external_link(file, name, folder):
    file[name] = h5py.ExternalLink(elsewhere(folder)[0], "/w")


def virtual(file, name, folder):
    layout = h5py.VirtualLayout(SHAPE, np.float32)
    layout[:] = h5py.VirtualSource(elsewhere(folder)[0], "w", SHAPE)
    file.create_virtual_dataset(name, layout)


def raw(file, name, folder):
    file.create_dataset(name, SHAPE, np.float32, external=[(elsewhere(folder)[1], 0, 4 * 30000)])


def huge(file, name, folder):
    file.create_dataset(name, (1 << 40, 60), np.float32, chunks=(1024, 60))


def chunked(file, name, folder):
    file.create_dataset(name, (2, 30011), np.float32, chunks=(1, 1024))


def unwritten(file, name, folder):
    file.create_dataset(name, (2, 30011), np.float32)


def references(file, name, folder):
    file.create_dataset(name, (3,), h5py.ref_dtype)


WEIGHT = "model/0.weight"
HOSTILE = {
    "external link": (instead(WEIGHT, external_link), "0.weight: is a link to /w in "),
    "soft link": (instead(WEIGHT, lambda f, n, d: f.__setitem__(n, h5py.SoftLink("/model/0.bias"))), "is a link to /model"),
    "virtual": (instead(WEIGHT, virtual), "0.weight: does not hold its values itself"),
    "values outside": (instead(WEIGHT, raw), "its values lie in "),
    "huge": (instead(WEIGHT, huge), "names 4 tensors of 65970697666571 elements"),
    "huge bases": (instead("bases/rows", huge), f"bases: holds rows of ({1 << 40}, 60) for numbers"),
    "object references": (instead("clients", references), "clients: is object (3,), expected a row of"),
    "a weight less": (array(WEIGHT, np.zeros((150, 199), np.float32)), "4 tensors of 29861 elements, 30008 of"),
    "a weight of double precision": (array(WEIGHT, np.full(SHAPE, 1e300)), "0.weight: is float64, expected float32"),
    "NaN": (array(WEIGHT, np.full(SHAPE, np.nan, np.float32)), "0.weight: holds a value that is not finite"),
    "bases in chunks": (instead("bases/rows", chunked), "bases/rows: does not hold its values itself"),
    "bases more than the file": (
        instead("bases/rows", unwritten),
        "bases/rows: declares float32 (2, 30011), of which 0% was written",
    ),
    "a base of infinity": (
        lambda f, d: f["bases/rows"].__setitem__((1, 7), np.inf),
        "bases/rows: holds a value that is not finite",
    ),
    "no weight": (instead(WEIGHT, lambda *_: None), "0.weight: no such array"),
    "a group for a weight": (instead(WEIGHT, lambda f, n, d: f.create_group(n)), "0.weight: is not an array"),
    "no model": (instead("model", lambda *_: None), "model: no such group"),
    "no names": (instead("names", lambda *_: None), "names: no such array"),
    "names of numbers": (array("names", np.arange(4)), "names: is int64 (4,), expected text"),
    "names not in UTF-8": (array("names", np.array([b"\xff\xfe", b"0.bias"])), "names: holds bytes that are not UTF-8"),
    "a name twice": (array("names", np.array([b"0.bias", b"0.bias"])), "names 2 tensors of 14 elements"),
    "a number for the config": (array("config", 3), "config: is int64 (), expected text"),
    "a config that is no TOML": (array("config", np.bytes_(b"not = [toml")), "is not TOML: "),
    "no number of parameters": (lambda f, d: f.attrs.__delitem__("num_params"), "the attribute 'num_params' is None"),
    "more parameters than elements": (attribute("num_params", 10**9), "of 30011 elements, 1000000000 of them parameters"),
    "a number that is text": (attribute("updates", "many"), "the attribute 'updates' is 'many', expected int"),
    "a list of numbers": (attribute("updates", np.arange(3)), "the attribute 'updates' is not one value"),
    "another schema": (attribute("schema", 99), "this has schema 99"),
    "a schema that is text": (attribute("schema", "one"), "this has schema one"),
    "updates below 0": (attribute("updates", -5), "updates = -5"),
    "a time of infinity": (attribute("time_s", np.inf), "time_s = inf"),
    "rows below 0": (attribute("update_rows", -1), "update_rows = -1"),
    "K of 0": (column("epochs", 0), "client 0 has K (expected 1 to 2147483647): {'epochs': 0, "),
    "K below 0": (column("epochs", -3, 1), "client 1 has K (expected 1 to 2147483647): {'epochs': -3, "),
    "K of 10**18": (column("epochs", 10**18), "client 0 has K (expected 1 to 2147483647)"),
    "a count below 0": (column("rounds", -1, 2), "client 2 has a count below 0"),
    "a base that is not there": (column("base_version", 500), "client 0 has an order without its base"),
    "a base to come": (column("base_version", 10**9), "client 0 has a base that is newer than the model"),
    "no bases": (instead("bases", lambda *_: None), "client 0 has an order without its base"),
    "bases without versions": (instead("bases/numbers", lambda *_: None), "bases/numbers: no such array"),
    "versions without bases": (instead("bases/rows", lambda *_: None), "bases/rows: no such array"),
    "a version less": (array("bases/numbers", np.array([117])), "bases: holds rows of (2, 30011) for numbers of int64 (1,)"),
    "a version twice": (array("bases/numbers", np.array([117, 117])), "bases/numbers: holds a number below 0, or one twice"),
    "a version below 0": (array("bases/numbers", np.array([117, -1])), "bases/numbers: holds a number below 0, or one"),
    "versions that are text": (array("bases/numbers", np.array([b"117", b"1"])), "bases: holds rows of (2, 30011) for"),
    "a table of versions": (
        array("bases/numbers", np.array([[117, 1]])),
        "for numbers of int64 (1, 2), expected (n, 30011)",
    ),
    "short bases": (array("bases/rows", np.zeros((2, 3), np.float32)), "bases: holds rows of (2, 3) for numbers"),
    "a base alone": (array("bases/rows", np.float32(3)), "bases: holds rows of () for numbers"),
    "bases of double precision": (array("bases/rows", np.zeros((2, 30011))), "bases/rows: is float64, expected float32"),
    "a client's own less": (array("own/numbers", np.array([0, 1])), "own: holds rows of (3, 5) for numbers of int64 (2,)"),
    "own of two clients": (
        both("own", np.array([0, 2]), np.zeros((2, 5), np.float32)),
        "is there of the clients [0, 2], expected 0 to 2",
    ),
    "own that is one number": (
        array("own/rows", np.float32(3)),
        "own: holds rows of () for numbers of int64 (3,), expected",
    ),
    "own without names": (instead("own_names", lambda *_: None), "own_names: no such array"),
    "no clients": (array("clients", np.zeros(0, a_snapshot().clients.dtype)), "it has no clients"),
    "no metrics": (instead("metrics", lambda *_: None), "metrics: no such array"),
    "metrics of other columns": (array("metrics", np.zeros(2)), "metrics: is float64 (2,), expected a row of"),
    "a metric twice": (
        array("metrics", METRICS.rows()[[0, 0]]),
        "metrics: 2 metrics have 1 names, and 2 of them are the goal",
    ),
    "a metric less": (array("metrics", METRICS.rows()[:1]), "score: is float64 (2,), expected float64 (1,)"),
    "clients of other columns": (array("clients", np.zeros(3, [("epochs", int)])), "expected a row of"),
}


def seal(path):
    """The head that belongs to the content."""
    body = path.read_bytes()[HEAD:]
    path.write_bytes(_head(HEAD + len(body), hashlib.sha256(body).hexdigest()) + body)


@pytest.mark.parametrize("way", HOSTILE)
def test_a_hostile_checkpoint_is_refused_and_the_good_one_before_it_is_used(tmp_path, way):
    edit, words = HOSTILE[way]
    good, bad = put(tmp_path, a_snapshot(110)), put(tmp_path, a_snapshot(120))
    with h5py.File(bad, "r+") as file:
        edit(file, tmp_path)
    seal(bad)
    with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are compared
        describe_checkpoint(bad)
    assert str(caught.value).startswith(f"{bad}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    found = newest(tmp_path)
    assert (found.path, found.damaged) == (good, (str(caught.value),))
    assert the_same(found.snapshot, a_snapshot(110))


def test_a_checkpoint_that_a_check_refuses_gives_way_to_the_one_before(tmp_path):
    old, new = put(tmp_path, a_snapshot(110)), put(tmp_path, a_snapshot(120))

    def check(path, snapshot):
        if path == new:
            raise ValueError(f"{path}: of another run")

    assert newest(tmp_path, check)[::2] == (old, (f"{new}: of another run",))
