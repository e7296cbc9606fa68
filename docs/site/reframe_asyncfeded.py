"""Tests of asyncfeded for ReFrame: for the people who run a machine, after each change of it.

    reframe --config-file SITE.py --checkpath docs/site/reframe_asyncfeded.py --run

They need `asyncfeded` in PATH, or the module that -S modules=NAME gives, and read the line of JSON that a command
prints last. Your site's references are `reference` of a system, as in any test of ReFrame.
"""

import json

import reframe as rfm
import reframe.utility.sanity as sn
from reframe.core.builtins import performance_function, run_after, sanity_function, variable


class JsonLine(rfm.RunOnlyRegressionTest):
    """A command whose last line is JSON."""

    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    executable = "asyncfeded"
    num_tasks = 5  # 1 server and 4 clients
    time_limit = "10m"
    maintainers = ["the asyncfeded authors"]
    tags = {"asyncfeded"}

    @sn.deferrable
    def value(self, name):
        """A number of the line of JSON."""
        return sn.evaluate(sn.extractall(r"^({.*})$", self.stdout, 1, json.loads))[-1][name]


@rfm.simple_test
class AsyncFedEDTrains(JsonLine):
    """A run ends, learns, and refuses no update."""

    descr = "asyncfeded: a run of the task synthetic"
    updates = variable(int, value=200)

    @run_after("init")
    def say_what_to_train(self):
        self.prerun_cmds = ["printf '[task]\\nname = \"synthetic\"\\n[rule]\\nepochs_max = 2\\n' > run.toml"]
        self.executable_opts = ["train", "run.toml", "run_dir=run", "device=cpu", f"limits.updates={self.updates}"]

    @sanity_function
    def finished(self):
        return sn.all(
            [
                sn.assert_eq(self.value("updates"), self.updates),
                sn.assert_eq(self.value("refused"), 0),
                sn.assert_gt(self.value("metrics")["accuracy"], 0.2),
            ]
        )

    @performance_function("1/s")
    def updates_per_s(self):
        return self.value("updates_per_s")


@rfm.simple_test
class AsyncFedEDServes(JsonLine):
    """The server at work: how long an update waits for its reply, beside what MPI itself needs for the same bytes."""

    descr = "asyncfeded: turnaround of the server for a model of 1e6 parameters"
    seconds = variable(float, value=5.0)

    @run_after("init")
    def say_what_to_measure(self):
        self.executable_opts = ["bench", "server", "--params", "1000000", "--seconds", str(self.seconds)]

    @sanity_function
    def measured(self):
        return sn.assert_gt(self.value("turnaround_s_p50"), 0)

    @performance_function("1")
    def turnaround_over_echo(self):
        return self.value("turnaround_over_echo")

    @performance_function("1/s")
    def updates_per_s(self):
        return self.value("updates_per_s")
