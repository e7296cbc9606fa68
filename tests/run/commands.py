"""What the tests of the program share, as a user types it: a config, and how it refuses."""

import socket
import sys

TOML = """
[limits]
updates = 12
[task]
name = "synthetic"
[training]
epochs = 1
[rule]
name = "asyncfeded"
epochs_max = 2
[evaluation]
every_s = 0.1
"""
PYTHON_M = [sys.executable, "-m", "asyncfeded"]
HOST = socket.gethostname()
ALSO_TO_A_FILE = """
import os, sys

class Both:
    def __init__(self):
        rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
        self.stderr, self.file = sys.stderr, open("stderr-" + rank, "a", buffering=1)
    def write(self, text):
        self.file.write(text)
        return self.stderr.write(text)
    def __getattr__(self, name):
        return getattr(self.stderr, name)

sys.stderr = Both()
"""
"""At the head of a program: what a rank says stands in a file of its own too, `stderr-RANK`, with no other's in between."""


def write_toml(folder):
    (folder / "run.toml").write_text(TOML)
    return folder


def refused(done, sentence):
    """Whether the program has refused in one sentence, once for all ranks, with status 2."""
    assert done.status == 2, str(done)
    assert done.stderr.count(sentence) == 1, str(done)
    assert done.stderr.count("asyncfeded: ") == 1, str(done)
    assert "Traceback" not in done.stderr, str(done)
    assert done.stdout == ""
