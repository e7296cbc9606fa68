"""Runs on a real Slurm: every way to start one, and the scripts of slurm/."""

import json
import os
import re
import shlex
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from asyncfeded.store import record
from asyncfeded.store.checkpoint import newest
from cluster.conftest import TOML, is_whole
from cluster.slurm import Slurm
from conftest import run, run_asyncfeded

SCRIPTS = Path(__file__).parents[2] / "slurm"
ASYNCFEDED = Path(sys.executable).with_name("asyncfeded")

NAMED = """#!/bin/sh
echo "$SLURMD_NODENAME ${CUDA_VISIBLE_DEVICES:-none}" > "$0.$SLURM_PROCID"
exec ASYNCFEDED "$@"
"""
"""The program, which first tells where it is, in a file of each task."""


@pytest.fixture
def folder(tmp_path):
    """A folder with run.toml, and the program in bin."""
    (tmp_path / "run.toml").write_text(TOML)
    program = tmp_path / "bin" / "asyncfeded"
    program.parent.mkdir()
    program.write_text(NAMED.replace("ASYNCFEDED", shlex.quote(str(ASYNCFEDED))))
    program.chmod(0o755)
    return tmp_path


def submit(slurm, mpi, folder, name, resources, *arguments):
    """A script of slurm/, with `--mpi` changed as its head says, and less of everything."""
    text = (SCRIPTS / name).read_text()
    assert "--mpi=pmix " in text
    (folder / name).write_text(text.replace("--mpi=pmix ", f"--mpi={pmi(mpi)} "))
    env = mpi.env | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    return slurm.submit(folder, *resources, name, *arguments, env=env)


def places(folder):
    """By task, the node that it was on, and its GPUs."""
    return {int(path.suffix[1:]): tuple(path.read_text().split()) for path in (folder / "bin").glob("asyncfeded.*")}


def log(folder):
    """What the server of the run has said: unlike the job's output, no other task's words are among it."""
    return (folder / "run" / "log.txt").read_text()


def confs(slurm, folder):
    """SLURM_CONF of a task on each of four nodes."""
    slurm.run("srun", "--nodes=4", f"--output={folder}/conf-%t", "printenv", "SLURM_CONF")
    return [(folder / f"conf-{task}").read_text() for task in range(4)]


def test_a_second_slurm_runs_beside_the_first_and_leaves_nothing(slurm, tmp_path):
    with Slurm() as other:
        assert confs(other, tmp_path) == [other.env["SLURM_CONF"] + "\n"] * 4
        endless = other.submit(tmp_path, "--nodes=4", "--wrap=srun sleep inf")
        other.until(endless, lambda: other.job(endless)["JobState"] == "RUNNING")
    assert not other.folder.exists()
    assert list(other.left()) == []
    assert confs(slurm, tmp_path) == [slurm.env["SLURM_CONF"] + "\n"] * 4


# --- every way to start one


def pmi(mpi):
    """What srun speaks with an MPI."""
    return "pmix" if mpi.vendor.startswith("Open MPI") else "pmi2"


def test_srun_starts_a_run(slurm, mpi, folder):
    line = f"srun --mpi={pmi(mpi)} --output=said-%t {ASYNCFEDED} train run.toml run_dir=run"
    done = slurm.ended(slurm.submit(folder, "-N3", "-n3", f"--wrap={line}", env=mpi.env | {"PMI_DEBUG": "1"}))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    assert is_whole(folder / "run", 12, 2)
    assert f"2 clients on 2 ranks of 1 host(s), {mpi.vendor}" in log(folder)
    for task in range(3):
        said = (folder / f"said-{task}").read_text()
        sent = re.findall(r"send to fd=\d+ pmi: (.*)", said)  # by MPICH; Slurm takes lines of 1024 bytes
        assert bool(sent) == (pmi(mpi) == "pmi2"), said
        assert max(map(len, sent), default=0) < 200


def test_a_run_under_srun_outlives_a_client(slurm, own_mpi, folder):
    """With -K0, which hands on the status of the rank that was killed."""
    if pmi(own_mpi) != "pmi2":
        pytest.skip("under pmix the step ends with any of its ranks")
    train = f"{ASYNCFEDED} train run.toml run_dir=run limits.updates=0 limits.seconds=30 faults.patience_s=2"
    job = slurm.submit(folder, "-N3", "-n3", f"--wrap=srun --mpi=pmi2 -K0 {train}", env=own_mpi.env)
    rows = folder / "run" / "record.h5.updates"
    slurm.until(job, lambda: rows.exists() and {0, 1} <= set(np.fromfile(rows, record.UPDATE)["client"].tolist()))
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            said = environ.read_bytes().split(b"\0")
            if b"SLURM_PROCID=2" in said and f"SLURM_JOB_ID={job}".encode() in said:
                os.kill(int(environ.parent.name), signal.SIGKILL)
    done = slurm.ended(job)
    assert "goes on without client 1: rank 2 was silent for " in log(folder), str(done)
    assert json.loads((folder / "run" / "result.json").read_text())["stopped"] == "30 s have passed (limits.seconds)"


def test_mpiexec_in_an_allocation_starts_a_run(slurm, mpi, folder):
    line = f"{ASYNCFEDED} train run.toml run_dir=run --ranks 3"
    done = slurm.ended(slurm.submit(folder, "-N3", "-n3", f"--wrap={line}", env=mpi.env))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    assert is_whole(folder / "run", 12, 2)


def test_mpiexec_typed_inside_a_step_starts_a_run_in_the_whole_job(slurm, mpi, folder):
    """As in the shell of `srun --pty bash`: a step of one task holds the cores that the new step asks for."""
    line = f"srun --overlap -N1 -n1 sh -c '{ASYNCFEDED} train run.toml run_dir=run --ranks 5; exit $?'"
    done = slurm.ended(slurm.submit(folder, "-N2", "-n2", f"--wrap={line}", env=mpi.env))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    assert is_whole(folder / "run", 12, 4)
    assert "left over" not in done.said


def test_a_job_submitted_inside_a_step_does_not_take_itself_for_a_task(slurm, own_mpi, folder):
    """Slurm hands the variables of the step on: there, rank 1 of 2 would end without a word, and with status 0."""
    inner = f'sbatch --parsable --output=inner -n3 --wrap="{ASYNCFEDED} train run.toml run_dir=run --ranks 3" > number'
    line = f"srun -n2 sh -c '[ $SLURM_PROCID = 0 ] || {inner}; exit 0'"
    assert slurm.ended(slurm.submit(folder, "-n2", f"--wrap={line}", env=own_mpi.env)).status == 0
    done = slurm.ended(int((folder / "number").read_text()))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    assert is_whole(folder / "run", 12, 2)
    assert "SLURM_STEP_NUM_TASKS and SLURM_PROCID of srun are left over and not used" in done.said


def test_the_variables_of_a_job_that_has_ended_are_not_used(slurm, mpi, folder):
    job = slurm.submit(folder, "-n1", "--wrap=env -0 | grep -z ^SLURM_ > variables")
    assert slurm.ended(job).status == 0
    left = dict(item.split("=", 1) for item in (folder / "variables").read_text().split("\0") if item)
    assert left["SLURM_JOB_ID"] == str(job)
    done = run_asyncfeded("train", "run.toml", "run_dir=run", "--ranks", 3, cwd=folder, env=mpi.env | left)
    assert done.status == 0, str(done)
    assert (
        f"asyncfeded: SLURM_JOB_ID={job}, but it is no running job of yours: all ranks start on this host\n" in done.stderr
    )
    assert is_whole(folder / "run", 12, 2)


def test_pmix_under_an_mpi_that_does_not_speak_it_is_refused_before_mpi_init(slurm, own_mpi, folder):
    if pmi(own_mpi) == "pmix":
        pytest.skip("this MPI speaks PMIx")
    line = f"srun --mpi=pmix {ASYNCFEDED} train run.toml run_dir=run"
    done = slurm.ended(slurm.submit(folder, "-n2", f"--wrap={line}", env=own_mpi.env))
    assert (done.state, done.status) == ("FAILED", 2), str(done)
    assert "which does not speak PMIx" in done.said
    assert "pmi2 for MPICH" in done.said


def test_the_doctor_names_srun(slurm, own_mpi, folder):
    line = f"srun --mpi={pmi(own_mpi)} --output=said-%t {ASYNCFEDED} doctor"
    done = slurm.ended(slurm.submit(folder, "-n2", f"--wrap={line}", env=own_mpi.env))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    assert json.loads((folder / "said-0").read_text().splitlines()[-1])["launcher"] == "srun"


def test_srun_that_does_not_speak_with_the_mpi_is_recognised(slurm, own_mpi, folder):
    line = f"srun --mpi=none {ASYNCFEDED} train run.toml run_dir=run"
    done = slurm.ended(slurm.submit(folder, "-n3", f"--wrap={line}", env=own_mpi.env))
    assert (done.state, done.status) == ("FAILED", 2), str(done)
    assert done.said.count("asyncfeded: srun started 3 ranks, but mpi4py uses ") == 1, str(done)
    assert "under srun, with an --mpi=... that the library supports (srun --mpi=list)" in done.said


def test_an_array_is_a_run_for_every_index(slurm, own_mpi, folder):
    line = f"srun --mpi={pmi(own_mpi)} {ASYNCFEDED} train run.toml seed=$SLURM_ARRAY_TASK_ID run_dir=$SLURM_ARRAY_TASK_ID"
    array = slurm.submit(folder, "--array=3-4", "-n2", f"--wrap={line}", env=own_mpi.env)
    for seed in (3, 4):
        done = slurm.ended(f"{array}_{seed}")
        assert (done.state, done.status) == ("COMPLETED", 0), str(done)
        assert is_whole(folder / str(seed), 12, 1)
        assert f"seed = {seed}\n" in record.read_record(folder / str(seed)).attributes["config"]


# --- the scripts


def test_train_has_a_gpu_for_every_client(slurm, own_mpi, folder):
    less = ("--ntasks=5", "--gpus-per-node=2", "--cpus-per-task=1", "--partition=gpu")
    done = slurm.ended(submit(slurm, own_mpi, folder, "train.sbatch", less, "run.toml", "run_dir=run"))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    where = places(folder)
    (first, _), (second, _) = where[0], where[4]
    assert first != second
    assert where == {task: (first if task < 3 else second, "0,1") for task in range(5)}, str(done)
    assert is_whole(folder / "run", 12, 4)


def test_hetero_has_its_server_on_a_cpu_node(slurm, mpi, folder):
    less = ("--cpus-per-task=1", ":", "--ntasks=2", "--gpus-per-node=2", "--cpus-per-task=1")
    job = submit(slurm, mpi, folder, "hetero.sbatch", less, "run.toml", "run_dir=run")
    slurm.until(job, (folder / "run" / "result.json").exists)  # the server's last file
    if pmi(mpi) == "pmi2":  # now and then Slurm's pmix does not let srun end (docs/cluster.md)
        done = slurm.ended(job)
        assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    where = places(folder)
    assert where[0] == ("n1", "none"), where
    assert {where[1][0], where[2][0]} < {"n2", "n3", "n4"}, where
    assert where[1][0] != where[2][0]
    assert where[1][1] == where[2][1] == "0,1"
    assert is_whole(folder / "run", 12, 2)


# --- a run that is longer than a job


NEVER = 1_000_000
"""Updates."""


BEGIN = "train|run.toml|run_dir=my run|checkpoint.every_s=600|limits.updates=400|"


@pytest.mark.parametrize(
    ("held", "typed"),
    [((), BEGIN), (("record.h5",), BEGIN), (("record.h5", "config.toml"), "resume|my run|limits.updates=400|")],
)
@pytest.mark.parametrize("status", [0, 75])
def test_resume_hands_its_overrides_on_in_every_life(tmp_path, held, typed, status):
    """Also where a life was killed before its config.toml was there. srun and scontrol tell how they were called."""
    for name, ends in (("srun", status), ("scontrol", 0)):
        (tmp_path / name).write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@"\nexit {ends}\n')
        (tmp_path / name).chmod(0o755)
    (tmp_path / "my run").mkdir()
    for name in held:
        (tmp_path / "my run" / name).touch()
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "1", "SLURM_JOB_ID": "7"}
    done = run(["bash", SCRIPTS / "resume.sbatch", "my run", "run.toml", "limits.updates=400"], tmp_path, env)
    assert done.status == status, str(done)
    assert done.stdout.partition("|asyncfeded|")[2] == typed + "scontrol|requeue|7|" * (status == 75)


def past_the_limit(slurm, job):
    """The job's time limit is less than two minutes away; Slurm looks every 30 s."""
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    slurm.until(job, lambda: slurm.job(job)["Restarts"] == "1")
    slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")


def requeued(slurm, job):
    """As when a job of higher priority comes."""
    slurm.run("scontrol", "requeue", job)


def start_without_end(slurm, mpi, folder):
    """resume.sbatch with a run that has no end, once some updates are recorded."""
    less = ("--ntasks=3", "--gpus-per-node=1", "--cpus-per-task=1", "--time=60")
    file = folder / "run.toml"
    file.write_text(file.read_text().replace("updates = 12", f"updates = {NEVER}"))
    arguments = ("run", "run.toml", "heterogeneity.delay_s=[0.1]")
    job = submit(slurm, mpi, folder, "resume.sbatch", less, *arguments)
    rows = folder / "run" / "record.h5.updates"
    slurm.until(job, lambda: rows.exists() and rows.stat().st_size >= 5 * record.UPDATE.itemsize)
    return job


@pytest.mark.parametrize("cut", [past_the_limit, requeued])
def test_resume_goes_on_until_the_run_is_finished(slurm, other_mpi, folder, cut):
    job = start_without_end(slurm, other_mpi, folder)
    cut(slurm, job)
    slurm.until(job, (folder / "run" / "result.json").exists)  # the last file of its first life
    rows = len(record.read_record(folder / "run").updates)
    config = folder / "run" / "config.toml"
    config.write_text(config.read_text().replace(f"updates = {NEVER}", f"updates = {rows + 9}"))
    done = slurm.ended(job)
    assert (done.state, done.status, done.restarts) == ("COMPLETED", 0, 1), str(done)
    assert log(folder).count("stopped: interrupted by a signal") == 1, str(done)
    assert f"goes on from checkpoint-{rows:010d}.h5" in log(folder), str(done)
    assert is_whole(folder / "run", rows + 9, 2)


def test_a_cancelled_job_leaves_a_good_checkpoint(slurm, other_mpi, folder):
    job = start_without_end(slurm, other_mpi, folder)
    slurm.run("scancel", job)
    done = slurm.ended(job)
    assert (done.state, done.restarts) == ("CANCELLED", 0), str(done)
    slurm.until_free()
    kept, rows = newest(folder / "run"), len(record.read_record(folder / "run").updates)
    assert not kept.damaged
    assert kept.snapshot.updates == rows > 0
    assert is_whole(folder / "run", rows, 2)
