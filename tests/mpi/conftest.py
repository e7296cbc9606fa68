"""Which tests of this folder run where: those of the part `mpi` in one process, those of messages on every rank of a job."""

from asyncfeded.mpi.launcher import launched_by

if launched_by():
    collect_ignore = ["test_launcher.py", "test_placement.py", "test_shield.py", "test_world.py"]
