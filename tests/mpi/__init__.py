"""Tests that run on every rank of a job, as one: `mpiexec -n 4 python -m pytest tests/mpi`."""
