"""The command line runs the one command that argv names. It imports torch only where a command trains."""

from asyncfeded.cli import measure, runs, studies, tell
from asyncfeded.cli.app import app

__all__ = ["main", "measure", "runs", "studies", "tell"]


def main() -> None:
    """The program `asyncfeded`."""
    app()
