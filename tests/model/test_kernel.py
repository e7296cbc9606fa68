"""The two passes over an update, in C++ and in torch, against numpy."""

import importlib.util
import sys

import numpy as np
import pytest
import torch

from asyncfeded.model import kernel

BLOCK = 1 << 14  # of the compiled kernel
SIZES = [0, 1, 15, 16, 17, BLOCK - 1, BLOCK, BLOCK + 1, kernel.CHUNK - 1, kernel.CHUNK, kernel.CHUNK + 1]
ETAS = [0.0, 1e-8, 0.3, 1.0, 2.5]

compiled_only = pytest.mark.skipif(not kernel.COMPILED, reason="the compiled kernel was not built")
gpu_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")


def sums_compiled(*arguments):
    """Both sums over all chunks."""
    return added(kernel.sums(*arguments))


def sums_twin(*arguments):
    """The same of the twin."""
    return added(kernel.sums_twin(*arguments))


def added(chunks):
    return tuple(kernel.add_up(pair[which] for pair in chunks) for which in range(2))


# (sums, apply, device) of each implementation
COMPILED = pytest.param(sums_compiled, kernel.apply, "cpu", id="compiled", marks=compiled_only)
TWIN = pytest.param(sums_twin, kernel.apply_twin, "cpu", id="twin")
TWIN_ON_GPU = pytest.param(sums_compiled, kernel.apply, "cuda", id="twin-cuda", marks=gpu_only)
every_implementation = pytest.mark.parametrize(("sums", "apply", "device"), [COMPILED, TWIN, TWIN_ON_GPU])
every_triad = pytest.mark.parametrize(
    ("triad", "device"),
    [
        pytest.param(kernel.triad, "cpu", id="compiled", marks=compiled_only),
        pytest.param(kernel.triad_twin, "cpu", id="twin"),
        pytest.param(kernel.triad, "cuda", id="twin-cuda", marks=gpu_only),
    ],
)


def models(n, seed=0):
    """Three float32 models (n,): x, w and base."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.standard_normal(n).astype(np.float32)) for _ in range(3)]


def distance(sums):
    """One of the two sums alone, of the same implementation, added to what came before."""
    alone = kernel.squared_distances_twin if sums is sums_twin else kernel.squared_distances
    return lambda a, base, start=0, stop=None, before=0.0: kernel.add_up([before, *alone(a, base, start, stop)])


def sums_in_numpy(x, w, base):
    """In float64 throughout."""
    x, w, base = (t.numpy().astype(np.float64) for t in (x, w, base))
    return ((x - base) ** 2).sum(), ((w - base) ** 2).sum()


def apply_in_numpy(x, w, base, eta):
    """In float32, rounded after each operation: what both implementations must give to the bit."""
    return x.numpy() + np.float32(eta) * (w.numpy() - base.numpy())


@every_implementation
def test_sums_of_a_case_worked_by_hand(sums, apply, device):
    """(1, 2) is 1 + 4 away from 0, and (4, 6) is 16 + 36."""
    x, w, base = (torch.tensor(v, device=device) for v in ([1.0, 2.0], [4.0, 6.0], [0.0, 0.0]))
    assert sums(x, w, base) == (5.0, 52.0)


@every_implementation
def test_apply_of_a_case_worked_by_hand(sums, apply, device):
    """1 + (4 - 2) / 2 = 2 and 2 + (6 - 0) / 2 = 5; the base becomes the result and w stays."""
    x, w, base = (torch.tensor(v, device=device) for v in ([1.0, 2.0], [4.0, 6.0], [2.0, 0.0]))
    apply(x, w, base, 0.5)
    assert (x.tolist(), w.tolist(), base.tolist()) == ([2.0, 5.0], [4.0, 6.0], [2.0, 5.0])


@every_implementation
@pytest.mark.parametrize("n", SIZES)
def test_sums_are_those_of_float64(sums, apply, device, n):
    x, w, base = models(n)
    expected = sums_in_numpy(x, w, base)
    assert sums(x.to(device), w.to(device), base.to(device)) == pytest.approx(expected, rel=1e-6, abs=0)


@every_implementation
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("eta", ETAS)
def test_apply_is_the_same_to_the_bit_everywhere(sums, apply, device, n, eta):
    x, w, base = models(n)
    expected = apply_in_numpy(x, w, base, eta)
    x, w, base = x.to(device), w.to(device), base.to(device)
    apply(x, w, base, eta)
    assert x.cpu().numpy().tobytes() == expected.tobytes()
    assert base.cpu().numpy().tobytes() == expected.tobytes()


@every_triad
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("s", ETAS)
def test_the_triad_is_the_same_to_the_bit_everywhere(triad, device, n, s):
    a, b, c = models(n)
    expected = b.numpy() + np.float32(s) * c.numpy()  # rounded after each operation
    a, b, c = a.to(device), b.to(device), c.to(device)
    kept = b.clone(), c.clone()
    triad(a, b, c, s)
    assert a.cpu().numpy().tobytes() == expected.tobytes()
    assert torch.equal(b, kept[0])
    assert torch.equal(c, kept[1])


@every_implementation
def test_sums_of_thirty_million_elements(sums, apply, device):
    """A pattern of 1,000,003 elements 30 times over has 30 times its sums, and ends within a block."""
    pattern = models(1_000_003)
    expected = [30 * total for total in sums_in_numpy(*pattern)]
    assert sums(*(t.to(device).repeat(30) for t in pattern)) == pytest.approx(expected, rel=1e-6)


@every_implementation
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["first", "middle", "block's last", "block's first", "tail's first", "last"])
def test_one_bad_element_makes_the_second_sum_not_finite(sums, apply, device, bad, place):
    n = BLOCK + 16 + 5
    at = {"first": 0, "middle": 7, "block's last": BLOCK - 1, "block's first": BLOCK, "tail's first": n - 5, "last": n - 1}
    x, w, base = models(n)
    w[at[place]] = bad
    moved, change = sums(x.to(device), w.to(device), base.to(device))
    assert np.isfinite(moved)
    assert not np.isfinite(change)


@every_implementation
def test_a_bad_element_behind_a_chunk_of_the_twin_is_found(sums, apply, device):
    x, w, base = models(kernel.CHUNK + 1)
    w[kernel.CHUNK] = float("nan")
    assert np.isnan(sums(x.to(device), w.to(device), base.to(device))[1])


@every_implementation
def test_very_large_finite_values_do_not_overflow(sums, apply, device):
    """1e30 squared is beyond float32, not beyond float64: 100 (2e30)^2 = 4e62."""
    w, base = torch.full((100,), 1e30, device=device), torch.full((100,), -1e30, device=device)
    assert sums(w, w, base) == pytest.approx((4e62, 4e62), rel=1e-6)


@compiled_only
@pytest.mark.parametrize("n", [1, BLOCK, 5 * BLOCK + 3])
def test_the_number_of_threads_changes_no_bit(n, monkeypatch):
    results = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        x, w, base = models(n)
        total = kernel.sums(x, w, base)
        kernel.apply(x, w, base, 0.3)
        kernel.triad(w, x, base, 0.3)
        results.append((total, x.numpy().tobytes(), base.numpy().tobytes(), w.numpy().tobytes()))
    assert results[0] == results[1]


@every_implementation
@pytest.mark.parametrize("n", [1, kernel.CHUNK - 1, kernel.CHUNK, kernel.CHUNK + 1, 3 * kernel.CHUNK + 5])
def test_a_model_in_parts_is_the_model_in_one_piece_to_the_bit(sums, apply, device, n):
    whole, parts = ([t.to(device) for t in models(n)] for _ in range(2))
    x, w, base = parts
    moved = change = 0.0
    for start in range(0, n, kernel.CHUNK):
        stop = min(start + kernel.CHUNK, n)
        moved, change = (distance(sums)(a, base, start, stop, s) for a, s in ((x, moved), (w, change)))
    assert (moved, change) == sums(*whole)
    apply(*whole, 0.3)
    for start in range(0, n, kernel.CHUNK):
        apply(*parts, 0.3, start, min(start + kernel.CHUNK, n))
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@every_implementation
@pytest.mark.parametrize("n", SIZES)
def test_one_of_the_sums_alone_is_the_same_to_the_bit(sums, apply, device, n):
    x, w, base = (t.to(device) for t in models(n))
    assert (distance(sums)(x, base), distance(sums)(w, base, before=0.0)) == sums(x, w, base)
    assert distance(sums)(x, base, n, n, 4.0) == 4.0


@every_implementation
def test_a_part_leaves_the_rest_alone(sums, apply, device):
    """Of (1, 2, 3) - 0 and (4, 6, 8) - 0 the middle: 4 and 36; 2 + (6 - 0) / 2 = 5."""
    x, w, base = (torch.tensor(v, device=device) for v in ([1.0, 2.0, 3.0], [4.0, 6.0, 8.0], [0.0, 0.0, 0.0]))
    assert (distance(sums)(x, base, 1, 2, 10.0), distance(sums)(w, base, 1, 2, 20.0)) == (14.0, 56.0)
    assert sums(x, w, base, 2) == (1.0 + 4.0, 16.0 + 36.0)
    apply(x, w, base, 0.5, 1, 2)
    assert (x.tolist(), base.tolist()) == ([1.0, 5.0, 3.0], [0.0, 5.0, 0.0])


@compiled_only
@pytest.mark.parametrize("part", [(-1, 2), (2, 1), (0, 5)])
def test_a_part_outside_the_model_is_refused(part):
    x, w, base = models(4)
    with pytest.raises((ValueError, TypeError)):
        kernel.squared_distances(x, base, *part)
    with pytest.raises((ValueError, TypeError)):
        kernel.apply(x, w, base, 1.0, *part)


@compiled_only
@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize(
    "wrong",
    [torch.zeros(4, dtype=torch.float64), torch.zeros(8)[::2], torch.zeros(2, 2)],
    ids=["float64", "strided", "2-d"],
)
def test_arguments_of_another_kind_are_refused_not_converted(which, wrong):
    arguments = [torch.zeros(4) for _ in range(3)]
    arguments[which] = wrong
    with pytest.raises(TypeError):
        kernel.sums(*arguments)
    for merge in (kernel.apply, kernel.triad):
        with pytest.raises(TypeError):
            merge(*arguments, 1.0)


@compiled_only
@pytest.mark.parametrize("which", range(3))
def test_arguments_of_different_length_are_refused(which):
    arguments = [torch.zeros(4) for _ in range(3)]
    arguments[which] = torch.zeros(5)
    with pytest.raises(ValueError, match="same length"):
        kernel.sums(*arguments)
    for merge in (kernel.apply, kernel.triad):
        with pytest.raises(ValueError, match="same length"):
            merge(*arguments, 1.0)


def test_without_the_compiled_kernel_the_twin_serves_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "asyncfeded._kernel", None)  # an import of it fails now
    spec = importlib.util.spec_from_file_location("kernel_without_compiler", kernel.__file__)
    without = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(without)
    assert not without.COMPILED
    assert "install a C++ compiler" in without.describe_kernel()
    x, w, base = (torch.tensor([v]) for v in (1.0, 3.0, 0.0))
    assert without.sums(x, w, base) == [(1.0, 9.0)]
    without.apply(x, w, base, 1.0)
    assert x.item() == 4.0
    without.triad(x, w, base, 2.0)  # 3 + 2 * 4
    assert x.item() == 11.0


@compiled_only
def test_with_the_compiled_kernel_tensors_in_host_memory_take_it(monkeypatch):
    monkeypatch.setattr(kernel, "sums_twin", None)
    monkeypatch.setattr(kernel, "apply_twin", None)
    monkeypatch.setattr(kernel, "triad_twin", None)
    x, w, base = models(3)
    kernel.sums(x, w, base)
    kernel.apply(x, w, base, 1.0)
    kernel.triad(x, w, base, 1.0)
    assert kernel.describe_kernel() == "compiled (C++)"
    assert kernel.describe_kernel("cuda:1") == "torch on cuda:1"


# --- the other merge


REACH = pytest.mark.parametrize(
    ("reach", "device"),
    [
        pytest.param(kernel.reach, "cpu", id="compiled", marks=compiled_only),
        pytest.param(kernel.reach_twin, "cpu", id="twin"),
        pytest.param(kernel.reach, "cuda", id="twin-cuda", marks=gpu_only),
    ],
)


@REACH
def test_reach_of_a_case_worked_by_hand(reach, device):
    """From base 0: w = 4 with x at 0, 3, 5 and -2 leaves 4, 1, 0 and 4 of the way; w = -4 with x at 1, -5 and 0.

    Half of it is gone, and half of v = 2 on top; v follows the movement by a quarter.
    """
    x = torch.tensor([0.0, 3.0, 5.0, -2.0, 1.0, -5.0, 0.0], device=device)
    w = torch.tensor([4.0, 4.0, 4.0, 4.0, -4.0, -4.0, -4.0], device=device)
    base, v = torch.zeros(7, device=device), torch.full((7,), 2.0, device=device)
    reach(x, w, base, v, 0.5, 0.5, 0.25, 0.0, 0, 7)
    assert x.tolist() == base.tolist() == [3.0, 4.5, 6.0, 1.0, 0.0, -4.0, -1.0]
    assert v.tolist() == [2.25, 1.875, 1.75, 2.25, 1.25, 1.75, 1.25]
    assert w.tolist() == [4.0] * 4 + [-4.0] * 3


@REACH
def test_reach_carries_the_other_model_along_by_hand(reach, device):
    """The same models, 1.5 times v = 2 further on: w = 7 leaves 4, 4, 2 and 4 of the way; w = -1 leaves -2, 0 and -1."""
    x = torch.tensor([0.0, 3.0, 5.0, -2.0, 1.0, -5.0, 0.0], device=device)
    w = torch.tensor([4.0, 4.0, 4.0, 4.0, -4.0, -4.0, -4.0], device=device)
    base, v = torch.zeros(7, device=device), torch.full((7,), 2.0, device=device)
    reach(x, w, base, v, 0.5, 0.5, 0.25, 1.5, 0, 7)
    assert x.tolist() == base.tolist() == [3.0, 6.0, 7.0, 1.0, 1.0, -4.0, 0.5]
    assert v.tolist() == [2.25, 2.25, 2.0, 2.25, 1.5, 1.75, 1.625]


@REACH
@pytest.mark.parametrize("n", SIZES)
def test_reach_is_the_same_to_the_bit_everywhere_and_in_parts(reach, device, n):
    (x, w, base), (v, *_) = models(n), models(n, seed=1)
    change = w.numpy() - base.numpy()
    left = w.numpy() + np.float32(0.7) * v.numpy() - x.numpy()
    step = np.minimum(np.maximum(left, np.minimum(change, 0)), np.maximum(change, 0))
    move = np.float32(0.6) * step + np.float32(0.8) * v.numpy()
    expected = [x.numpy() + move, v.numpy() + np.float32(0.03) * (move - v.numpy())]
    x, w, base, v = (t.to(device) for t in (x, w, base, v))
    half = n // kernel.CHUNK * kernel.CHUNK if n > kernel.CHUNK else n
    for start, stop in ((0, half), (half, n)):
        reach(x, w, base, v, 0.6, 0.8, 0.03, 0.7, start, stop)
    assert [t.cpu().numpy().tobytes() for t in (x, v)] == [t.tobytes() for t in expected]
    assert torch.equal(base, x)


@compiled_only
def test_reach_is_refused_where_v_ends_before_the_part():
    with pytest.raises(ValueError, match="v has 3 elements, expected as many as stop, 4"):
        kernel.reach(*models(4), torch.zeros(3), 0.6, 0.8, 0.03, 0.0, 0, 4)
