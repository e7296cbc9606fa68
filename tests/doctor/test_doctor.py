"""The doctor under real launchers, and what it makes of readings of jobs that are not well."""

import json
import os
import re
import socket
import sys

import pytest

from asyncfeded import doctor
from asyncfeded.doctor import folder, problem
from asyncfeded.doctor.folder import Folder
from asyncfeded.doctor.problem import Link
from asyncfeded.files.paths import kind_of
from conftest import places, run, run_asyncfeded

HOST = socket.gethostname()
FIGURES = [
    "ok", "ranks", "hosts", "mpi", "mpi_version", "library", "thread_level", "launcher", "failures", "gpu_buffers",
    "placement", "folder", "links", "large_message", "problems",
]  # fmt: skip


def stopping(figures):
    return [each["text"] for each in figures["problems"] if each["stops"]]


# --- under real launchers


@pytest.fixture(scope="module", params=[2, 4])
def examined(request, mpi, tmp_path_factory):
    """A job that is well, its number of ranks, and its MPI."""
    done = run_asyncfeded("doctor", "runs/new", "--ranks", request.param, cwd=tmp_path_factory.mktemp("well"), env=mpi.env)
    return done, request.param, mpi


def test_a_job_that_can_train_gets_status_0(examined):
    done, ranks, mpi = examined
    assert done.status == 0, str(done)
    figures = done.result
    assert list(figures) == FIGURES
    assert figures["ok"] is True
    assert (figures["ranks"], figures["hosts"], figures["mpi"]) == (ranks, 1, mpi.vendor)
    assert (figures["library"], figures["thread_level"]) == (mpi.library, "FUNNELED")
    assert "mpiexec" in figures["launcher"]
    assert stopping(figures) == []


def test_every_link_is_measured(examined):
    done, ranks, _ = examined
    links = done.result["links"]
    assert [link["rank"] for link in links] == list(range(1, ranks))
    for link in links:
        assert link["latency_s"] > 0
        assert link["bytes_per_s"] > 0
        assert abs(link["skew_s"]) <= link["skew_error_s"] + 1e-3  # one clock
    assert done.stdout.count("slowest") == (ranks > 2)


def test_a_large_message_is_sent_or_it_is_said_why_not(examined):
    large = examined[0].result["large_message"]
    assert large == "arrives" or large.startswith("not tried: it takes 6.4 GB of memory")


def test_the_map_shows_every_rank(examined):
    done, ranks, _ = examined
    found = done.result["placement"]
    assert [place["role"] for place in found] == ["server"] + ["worker"] * (ranks - 1)
    assert {place["host"] for place in found} == {HOST}
    assert sum(place["cores"] for place in found) <= len(os.sched_getaffinity(0)) + 1e-6
    assert re.search(rf"^{ranks - 1} +{HOST} +worker ", done.stdout, re.MULTILINE)


def test_the_folder_is_tried_where_it_would_be_and_left_as_it_was(examined, tmp_path):
    found = examined[0].result["folder"]
    assert found["free_bytes"] > 0
    assert found["fsync_s"] > 0
    assert [found[name] for name in ("writing", "renaming", "saving")] == [""] * 3
    folder.look(tmp_path / "runs" / "new")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_share_cores_are_told_in_a_note(examined):
    done, ranks, _ = examined
    cores = len(os.sched_getaffinity(0))
    note = f"ranks 0-{ranks - 1} on {HOST} share {cores} core(s)"
    assert (note in done.stdout) == (cores < ranks)


def test_one_rank_is_told_that_it_cannot_train(own_mpi, tmp_path):
    done = run_asyncfeded("doctor", cwd=tmp_path, env=own_mpi.env)
    assert done.status == 1, str(done)
    assert stopping(done.result) == [
        "one rank cannot train, it takes a server and a client; type asyncfeded doctor --ranks 5, or start it with mpiexec "
        "or srun"
    ]
    assert (done.result["links"], done.result["large_message"]) == ([], "not tried: no other rank")


def test_a_folder_that_cannot_be_made_stops_a_run(own_mpi, tmp_path):
    (tmp_path / "file").touch()
    done = run_asyncfeded("doctor", "file/run", "--ranks", 2, cwd=tmp_path, env=own_mpi.env)
    assert done.status == 1, str(done)
    told = stopping(done.result)
    assert told == [f"{tmp_path}/file cannot be written: Not a directory; choose another folder (run_dir=...)"]
    assert f"STOPS A RUN: {told[0]}\n" in done.stdout


@pytest.mark.parametrize(("starter", "user"), [("own_mpi", "other_mpi"), ("other_mpi", "own_mpi")])
def test_the_launcher_of_another_mpi_stops_a_run(request, tmp_path, starter, user):
    starter, user = request.getfixturevalue(starter), request.getfixturevalue(user)
    done = run(starter.command((2, [sys.executable, "-m", "asyncfeded", "doctor"])), tmp_path, starter.env | user.env)
    assert done.status != 0, str(done)
    figures = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert figures["ok"] is False
    assert "started 2 ranks, but mpi4py uses" in stopping(figures)[0]
    assert done.stdout.count("STOPS A RUN") == 1, str(done)


def test_ulfm_is_seen_where_it_is_on(request, tmp_path):
    """Only Open MPI has it, under its own mpiexec with that option."""
    for name in ("own_mpi", "other_mpi"):
        mpi = request.getfixturevalue(name)
        if not mpi.vendor.startswith("Open MPI"):
            continue
        command = [mpi.mpiexec[0], "--with-ft", "ulfm", *mpi.mpiexec[1:]]
        command += ["-n", 2, sys.executable, "-m", "asyncfeded", "doctor"]
        done = run(command, tmp_path, mpi.env)
        assert done.status == 0, str(done)
        assert done.result["failures"] == "on"


SILENT = """
import time
from asyncfeded import cli
from asyncfeded.doctor import links

links.DEADLINE_S = 1.0
links.answer = lambda here: time.sleep(30)
cli.main()
"""


def test_a_client_that_does_not_answer_is_named_and_ends_the_report(own_mpi, tmp_path):
    (tmp_path / "silent.py").write_text(SILENT)
    done = run(own_mpi.command((2, [sys.executable, "silent.py", "doctor"])), tmp_path, own_mpi.env)
    assert done.status != 0, str(done)
    assert f'"text": "rank 1 on {HOST} does not answer within 1 s; look at the network between the hosts' in done.stdout


SELF = """
import sys, numpy
from asyncfeded.mpi.launcher import MPI
MPI.Init()
back = numpy.zeros(1000)
MPI.COMM_SELF.Sendrecv(numpy.ones(1000), 0, recvbuf=back, source=0)
sys.exit(0 if MPI.COMM_WORLD.size == 1 and back.min() == 1 else 3)
"""
TRIES = f"""
from pathlib import Path
from asyncfeded import doctor
from asyncfeded.mpi import world
here = world.join_job()
told = [doctor._gpu_buffers(code) for code in ({SELF!r}, "import os; os.abort()", "1 / 0")]
Path(f"told-{{here.rank}}").write_text("\\n".join(told))
world.leave_job()
"""


def test_the_trial_of_gpu_memory_is_a_job_of_its_own_whose_crash_is_survived(own_mpi, tmp_path):
    """Here with the memory of the CPU, with a crash and with an error."""
    done = run(own_mpi.command((2, [sys.executable, "-c", TRIES])), tmp_path, own_mpi.env)
    assert done.status == 0, str(done)
    for rank in range(2):
        assert (tmp_path / f"told-{rank}").read_text().splitlines() == [
            "yes (GPU-aware); training does not need them",
            "no: signal 6; training does not need them",
            "no: ZeroDivisionError: division by zero; training does not need them",
        ]


LARGE = """
from pathlib import Path
from types import SimpleNamespace
from asyncfeded.mpi import world
from asyncfeded.doctor import links
from asyncfeded.mpi.launcher import MPI

class Refusing:
    def __init__(self, comm, who):
        self.comm, self.who = comm, who
    def __getattr__(self, name):
        return getattr(self.comm, name)
    def Isend(self, message, to, tag):
        if self.who == "sender" and message.nbytes == links.LARGE:
            raise MPI.Exception(MPI.ERR_COUNT)
        return self.comm.Isend(message, to, tag)
    def Irecv(self, message, source, tag):
        if self.who == "receiver" and message.nbytes == links.LARGE:
            raise MemoryError
        return self.comm.Irecv(message, source, tag)

links.LARGE = 1 << 23
links._marks = lambda: [0, 1, 2, 3]
here, told = world.join_job(), []
for who in ("sender", "nobody", "receiver", "nobody"):
    there = SimpleNamespace(comm=Refusing(here.comm, who))
    if here.rank:
        links.answer(there)
    else:
        told.append(links.send_large(there, 1))
        links.ask(there, 1, links.LEAVE)
if not here.rank:
    Path("told").write_text("\\n".join(told))
world.leave_job()
"""


def test_a_large_message_that_one_side_refuses_is_taken_back(mpi, tmp_path):
    """The next one arrives: nothing is left of it."""
    done = run(mpi.command((2, [sys.executable, "-c", LARGE])), tmp_path, mpi.env)
    assert done.status == 0, str(done)
    refused, fine, no_memory, again = (tmp_path / "told").read_text().split("\n")
    assert "count" in refused.lower()
    assert (fine, no_memory, again) == ("", "no memory", "")


# --- links and clocks


def link(rank, latency_us=2.0, gb_per_s=10.0, skew_s=0.0, skew_error_s=1e-6):
    return Link(rank, latency_us * 1e-6, gb_per_s * 1e9, skew_s, skew_error_s)


def texts(problems):
    assert not any(each.stops for each in problems)
    return [each.text for each in problems]


FAR = ["h0", "h1", "h2", "h3", "h4"]


def test_equal_links_are_well():
    assert problem.of_links([link(rank) for rank in range(1, 5)], FAR) == []


def test_a_thin_link_is_told_beside_the_others():
    """2 GB/s is less than a quarter of 10."""
    told = texts(problem.of_links([link(1), link(2, gb_per_s=2.0), link(3), link(4)], FAR))
    assert told == ["rank 2 on h2 is reached with 2.00 GB/s, others 10.00; look at its link, or leave that host out"]


def test_a_late_link_is_told_beside_the_others():
    told = texts(problem.of_links([link(1, 20), link(2, 20), link(3, 20), link(4, 900)], FAR))
    assert told == ["rank 4 on h4 is reached in 900 us, others 20; see what else runs there, or leave that host out"]


def test_a_link_of_another_kind_is_no_measure():
    """Two neighbours of the server are 20 times faster than the three hosts beyond."""
    links = [link(1, 1, 10), link(2, 1, 10), link(3, 200, 0.5), link(4, 200, 0.5), link(5, 200, 0.5)]
    assert problem.of_links(links, ["h0", "h0", "h0", "h1", "h2", "h3"]) == []


def test_of_two_links_neither_is_slow():
    assert problem.of_links([link(1), link(2, 5000, 0.3)], FAR) == []


def test_a_thin_network_is_told_once():
    told = texts(problem.of_links([link(rank, 50, 0.11) for rank in range(1, 5)], FAR))
    assert len(told) == 1
    assert told[0].startswith("the network moves 0.11 GB/s between hosts; see that MPI uses the fast one (UCX_NET_DEVICES")


def test_a_clock_that_is_off_is_told_once_for_its_host():
    links = [link(1, skew_s=-61.25), link(2, skew_s=-61.24), link(3, skew_s=0.9), link(4, skew_s=3.0, skew_error_s=2.5)]
    told = texts(problem.of_links(links, ["h0", "h1", "h1", "h2", "h3"]))
    assert told == ["the clock of h1 is -61.2 s off the server's; set it (NTP), or times in logs do not compare"]


def test_of_many_links_the_slowest_are_shown():
    """40 links of rising bandwidth, one latency: the first 32 are shown."""
    lines = doctor._links_table([link(rank, 2, rank) for rank in range(1, 41)], ["h"] * 41)
    assert [line.split()[0] for line in lines[1:33]] == [str(rank) for rank in range(1, 33)]
    assert lines[33:] == ["(8 faster ones are not shown)"]
    assert lines[1].endswith("slowest, thinnest")


# --- places and versions


def test_ranks_with_less_than_a_core_are_told_by_host():
    crowded = places("a", "a", "a", "b")
    crowded["cores"] = 2 / 3, 2 / 3, 2 / 3, 1
    assert texts(problem.of_places(crowded)) == [
        "ranks 0-2 on a share 2 core(s); start fewer there, or ask for more cores (srun --cpus-per-task, mpiexec --bind-to "
        "none)"
    ]


def test_ranks_that_share_a_gpu_are_told_where_its_address_is_known():
    """Two on the first GPU of a, one on that of b; two of c that call theirs the same may see one each."""
    shared = places("a", "a", "a", "b", "c", "c")
    shared["device"] = "cpu", "cuda:0 0000:3b:00.0", "cuda:0 0000:3b:00.0", "cuda:0 0000:3b:00.0", "cuda:0", "cuda:0"
    told = "ranks 1-2 on a share GPU cuda:0 0000:3b:00.0; start one client for each GPU"
    assert texts(problem.of_places(shared)) == [told]


def test_other_software_on_a_host_is_told():
    facts = {"python": ["3.11", "3.11"], "torch": ["2.5", "2.6"], "asyncfeded": ["0.1", "0.2"]}
    told = problem.of_versions(facts, ["a", "b"])
    assert [each.text for each in told] == [
        "torch is 2.5 on a and 2.6 on b; install the same on every host",
        "asyncfeded is 0.1 on a and 0.2 on b; install the same on every host",
    ]
    assert [each.stops for each in told] == [False, True]


def test_an_mpi_without_threads_stops_a_run():
    assert problem.of_thread_level(1, 1) == problem.of_thread_level(3, 1) == []
    assert [each.stops for each in problem.of_thread_level(0, 1)] == [True]


@pytest.mark.parametrize(
    ("offered", "vendor", "started", "env", "word"),
    [
        (False, "Intel MPI 2021", "the mpiexec of MPICH or Intel MPI", {}, "no: this MPI does not offer it"),
        (True, "MPICH 5.0.2", "the mpiexec of MPICH or Intel MPI", {}, "no: MPICH 5.0.2 answers its calls"),
        (True, "Open MPI 5.0.11", "Open MPI's mpiexec", {}, "off: start with Open MPI's mpiexec --with-ft ulfm"),
        (True, "Open MPI 5.0.11", "Open MPI's mpiexec", {"OMPI_MCA_mpi_ft_enable": "0"}, "off: "),
        (True, "Open MPI 5.0.11", "srun", {"OMPI_MCA_mpi_ft_enable": "1"}, "off: "),
        (True, "Open MPI 5.0.11", "Open MPI's mpiexec", {"OMPI_MCA_mpi_ft_enable": "1"}, "on"),
    ],
)
def test_whether_failures_are_reported(offered, vendor, started, env, word):
    assert problem.failures(offered, vendor, started, env).startswith(word)


# --- the run's folder

WELL = Folder("/data", "ext4", 2 << 30, 0.01)


@pytest.mark.parametrize(
    ("change", "stops", "words"),
    [
        (
            {"writing": "Read-only file system"},
            True,
            "/data cannot be written: Read-only file system; choose another folder",
        ),
        ({"renaming": "the old file is still there"}, True, "/data does not rename files at once: the old file is"),
        ({"saving": "no locks"}, True, "/data takes no HDF5 files: no locks; set HDF5_USE_FILE_LOCKING=FALSE"),
        ({"free_bytes": 20_000_000}, False, "/data has 0.02 GB free: on a full disk no checkpoints are written; make room"),
        ({"fsync_s": 2.34}, False, "/data takes 2.3 s to bring 4 KiB to the disk: let many seconds pass between"),
        ({"kind": "tmpfs"}, False, "/data lies in memory (tmpfs): the run is lost with the machine"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told_with_a_remedy(change, stops, words):
    (told,) = folder.problems(WELL._replace(**change))
    assert told.text.startswith(words)
    assert told.stops is stops


def test_a_folder_that_is_well_has_no_problem():
    assert folder.problems(WELL) == []


def broken(error):
    def fail(*args):
        raise error

    return fail


def test_a_rename_that_fails_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.Path, "replace", broken(OSError(18, "Invalid cross-device link")))
    assert folder.look(tmp_path).renaming == "Invalid cross-device link"


def test_a_file_system_that_cannot_sync_is_not_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.os, "fsync", broken(OSError(5, "Input/output error")))
    assert folder.look(tmp_path).writing == "Input/output error"


MOUNTS = r"""
/dev/sda1 / ext4 rw 0 0
proc /proc proc rw 0 0
server:/export /data nfs4 rw 0 0
tmpfs /data/my\040runs tmpfs rw 0 0
/dev/sda1 /mnt ext4 rw 0 0
/dev/sdb1 /mnt xfs rw 0 0
""".strip()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home", "ext4"),
        ("/data", "nfs4"),
        ("/data/a/b", "nfs4"),
        ("/database", "ext4"),
        ("/data/my runs/1", "tmpfs"),
        ("/mnt/x", "xfs"),
    ],
)
def test_the_kind_of_a_file_system_is_that_of_the_nearest_mount(path, kind):
    assert kind_of(folder.Path(path), MOUNTS) == kind


def test_without_mounts_the_kind_is_unknown():
    assert kind_of(folder.Path("/data"), "") == ""
