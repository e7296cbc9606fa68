"""What a rule or a task of your own is tested with; the program tests its own ones so.

    from asyncfeded.testing import RuleTests

    class TestMine(RuleTests):  # pytest runs all properties that a rule must have
        def make_rule(self):
            return Mine(eta=0.3)

`TaskTests` does the same for a task. `FakeWire` plays arrivals to a server without MPI. Nothing here imports pytest.
"""

from asyncfeded.testing.fake_wire import FakeWire, Sent
from asyncfeded.testing.rule_tests import RuleTests
from asyncfeded.testing.task_tests import TaskTests

__all__ = ["FakeWire", "RuleTests", "Sent", "TaskTests"]
