"""What control groups, limits and the host leave to a process: read from files made here."""

import resource

import numpy as np
import pytest

from asyncfeded.mpi import limits

# --- quotas


@pytest.fixture
def quota(tmp_path):
    """The quota of a process in a control group, of a system with these files."""

    def find(own, files):
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        cores, group = limits.quota(tmp_path, tmp_path / "own")
        return cores, group, lambda folder: (tmp_path / folder).stat().st_ino

    return find


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/job/step\n", {"job/step/memory.max": "max\n", "job/step/memory.current": "5\n"}, np.inf),
        ("0::/job\n", {"job/memory.max": "1000\n", "job/memory.current": "300\n", "memory.max": "800\n"}, 700),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": "9000\n", "memory/a/memory.usage_in_bytes": "8000\n"}, 1000),
        ("4:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "9000\n", "memory/a/memory.usage_in_bytes": "8000\n"}, np.inf),
    ],
)
def test_the_memory_that_control_groups_leave(tmp_path, quota, own, files, left):
    quota(own, files)
    assert limits.memory(tmp_path, tmp_path / "own")[0] == left


@pytest.mark.parametrize(
    ("own", "folder", "names", "stat"),
    [
        ("0::/job\n", "job", ("max", "current"), "anon 70\nactive_file 20\ninactive_file 5\n"),
        (
            "4:memory:/job\n",
            "memory/job",
            ("limit_in_bytes", "usage_in_bytes"),
            "active_file 1\ntotal_active_file 20\ntotal_inactive_file 5\n",
        ),
    ],
)
def test_pages_of_files_give_way_and_count_as_left(tmp_path, quota, own, folder, names, stat):
    """Of 100 bytes 95 are used, 25 of them by pages of files."""
    texts = dict(zip(names, ("100\n", "95\n"), strict=True)) | {"stat": stat}
    quota(own, {f"{folder}/memory.{name}": text for name, text in texts.items()})
    assert limits.memory(tmp_path, tmp_path / "own") == (30, (tmp_path / folder).stat().st_ino)


def test_room_for_shared_memory_is_that_of_its_file_system(tmp_path):
    found = limits.shared_memory(tmp_path)
    assert 0 < found.free <= found.total < np.inf
    assert limits.shared_memory(tmp_path / "none") == (np.inf, np.inf)


def test_the_memory_of_a_host_is_what_is_available_and_its_swap(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemAvailable:   64 kB\nHugePages_Total: 0\nSwapFree: 16 kB\n")
    assert limits.host_memory(tmp_path / "meminfo") == 80 * 1024
    assert limits.host_memory(tmp_path / "none") == np.inf


@pytest.mark.parametrize(
    ("set_to", "left"), [({}, np.inf), ({"AS": 400 << 10}, 100 << 10), ({"AS": 1 << 30, "DATA": 60 << 10}, 10 << 10)]
)
def test_a_process_may_reserve_what_its_limits_leave(tmp_path, monkeypatch, set_to, left):
    (tmp_path / "status").write_text("Name:\ta: b\nVmSize:\t 300 kB\nVmRSS:\t 20 kB\nVmData:\t 50 kB\n")
    by_number = {getattr(resource, f"RLIMIT_{name}"): (size, size) for name, size in set_to.items()}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda number: by_number.get(number, (-1, -1)))
    assert limits.process_memory(tmp_path / "status") == (20 << 10, left)


def test_the_least_quota_above_a_process_counts(quota):
    """Version 2: none of its own, 1.5 cores for its job, 4 for the pod."""
    files = {"pod/job/step/cpu.max": "max 100000\n", "pod/job/cpu.max": "150000 100000\n", "pod/cpu.max": "400000 100000\n"}
    cores, group, number = quota("0::/pod/job/step\n", files)
    assert (cores, group) == (1.5, number("pod/job"))


def test_version_1_is_read(quota):
    files = {"cpu,cpuacct/box/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/box/cpu.cfs_period_us": "50000\n"}
    cores, group, number = quota("5:memory:/box\n4:cpu,cpuacct:/box\n0::/box\n", files)
    assert (cores, group) == (4.0, number("cpu,cpuacct/box"))


def test_a_container_that_sees_its_own_group_as_the_root(quota):
    """/proc names the group of the host, which is not there."""
    cores, group, number = quota("4:cpu:/docker/abc\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"})
    assert (cores, group) == (0.5, number("cpu"))


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("", {}),
        ("0::/a\n", {}),
        ("0::/a\n", {"a/cpu.max": "broken"}),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}),
    ],
)
def test_without_a_quota_there_is_no_limit(quota, own, files):
    assert quota(own, files)[0] == np.inf


def test_a_system_without_control_groups_has_no_limit(tmp_path):
    assert limits.quota(tmp_path, tmp_path / "none") == (np.inf, 0)


def test_this_system_gives_a_quota():
    assert limits.quota()[0] > 0
