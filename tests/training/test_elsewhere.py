"""Tests that another rank makes: what the server notes of them, and when; the rank itself."""

import torch

from asyncfeded.training.elsewhere import Elsewhere, serve_tests
from asyncfeded.training.evaluation import Score


class FakeTester:
    """Answers a snapshot after so many polls: its sum, and its version."""

    def __init__(self, polls=2):
        self.polls, self.left, self.testing, self.sent = polls, 0, False, []

    def send(self, x, version):
        assert not self.testing
        self.left, self.testing = self.polls, True
        self.sent.append((x.sum().item(), float(version)))

    def poll(self):
        self.left -= 1
        if self.left > 0:
            return None
        self.testing = False
        return list(self.sent[-1])

    def wait(self):
        self.left = 0
        return self.poll()


def test_a_score_comes_when_it_is_ready_and_nobody_waits():
    evaluator = Elsewhere(FakeTester(), ("sum", "version"))
    evaluator.start(torch.ones(3), 7)
    assert (evaluator.running, evaluator.step()) == (True, None)
    assert evaluator.step() == Score(7, {"sum": 3.0, "version": 7.0})
    assert not evaluator.running


def test_the_last_test_of_a_run_comes_after_the_one_that_is_under_way():
    tester = FakeTester()
    evaluator = Elsewhere(tester, ("sum", "version"))
    evaluator.start(torch.ones(3), 7)
    assert evaluator.score(torch.zeros(3), 8) == Score(8, {"sum": 0.0, "version": 8.0})
    assert [version for _, version in tester.sent] == [7, 8]


def test_the_rank_that_tests_gives_a_sign_after_each_batch_until_the_server_says_stop():
    class Server:
        def __init__(self):
            self.snapshot, self.orders, self.told, self.ranks_lost = torch.zeros(1), [4, None], [], True

        def receive(self):
            self.snapshot.fill_(2.0)
            return self.orders.pop(0)

        def tell(self, values=None):
            self.told.append(values)

    class Evaluator:
        def start(self, x, version):
            self.batches, self.found = 3, Score(version, {"x": x.item()})

        def step(self):
            self.batches -= 1
            return None if self.batches else self.found

    server = Server()
    assert serve_tests(server, Evaluator())
    assert server.told == [None, None, [2.0]]
