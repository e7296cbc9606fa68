"""Asynchronous federated learning over MPI with Euclidean-distance staleness (AsyncFedED, arXiv 2205.13797)."""

from importlib.metadata import version

__version__ = version("asyncfeded")
