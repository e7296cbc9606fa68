"""Buffers in a file: they keep what is in them when their memory is taken, and every fault of a folder is a sentence."""

import errno
import os
from pathlib import Path

import pytest
import torch

from asyncfeded.model import disk
from asyncfeded.model.disk import Disk


def resident_kb(of):
    """Memory of this process that lies in files without a name, kB."""
    maps, own = Path("/proc/self/smaps").read_text(encoding="ascii").split("\n"), 0
    for number, line in enumerate(maps):
        if str(of) in line and "(deleted)" in line:
            own += next(int(rest.split()[1]) for rest in maps[number:] if rest.startswith("Rss:"))
    return own


def test_a_buffer_that_is_put_away_keeps_its_numbers_and_takes_no_memory(tmp_path):
    lies = Disk(tmp_path, 100_000, 2)
    one, other = lies.new(), lies.new()
    assert one.tolist() == [0.0] * 100_000
    one.fill_(1.0)
    other.fill_(2.0)
    full = resident_kb(tmp_path)
    lies.put_away(one)
    assert full - resident_kb(tmp_path) == lies.num_bytes / 2 / 1024
    lies.read_ahead(one)
    assert (one.unique().tolist(), other.unique().tolist()) == ([1.0], [2.0])


def test_the_place_of_a_buffer_is_free_once_nothing_refers_to_it(tmp_path):
    """Not even what the wire sends from, nor a part of it."""
    lies = Disk(tmp_path, 10, 2)
    one, other = lies.new().fill_(1.0), lies.new()
    address, sending = one.data_ptr(), one[2:].numpy()
    del one
    with pytest.raises(IndexError):
        lies.new()
    assert sending.tolist() == [1.0] * 8
    del sending
    assert lies.new().data_ptr() == address != other.data_ptr()


def test_what_lies_elsewhere_is_left_alone(tmp_path):
    lies, here = Disk(tmp_path, 0, 1), torch.ones(10)
    for buffer in (here, lies.new()):
        lies.put_away(buffer)
    assert here.tolist() == [1.0] * 10


def test_the_file_has_no_name_and_two_runs_share_a_folder(tmp_path):
    one, other = Disk(tmp_path, 10, 1), Disk(tmp_path, 10, 1)
    one.new().fill_(1.0)
    assert other.new().tolist() == [0.0] * 10
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"bases_dir = '.*none': No such file.*; the bases of .* need .* GB there;"):
        Disk(tmp_path / "none", 10, 1)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def refused(**_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", refused)
    with pytest.raises(ValueError, match="Permission denied; the bases of the clients need"):
        Disk(tmp_path, 10, 1)


def test_a_full_disk_is_found_before_training(tmp_path):
    with pytest.raises(ValueError, match=r"need 4e\+06 GB there, and .* GB are free; name another folder, or take fewer"):
        Disk(tmp_path, 10**9, 10**6)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_memory_is_no_disk(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text("tmpfs / tmpfs rw 0 0\n", encoding="ascii")
    monkeypatch.setattr(disk, "MAPPED", mounts)
    with pytest.raises(ValueError, match=r"that folder lies in memory \(tmpfs\); name one on a disk, or set bases = memory"):
        Disk(tmp_path, 10, 1)
