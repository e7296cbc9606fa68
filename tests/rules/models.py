"""The tests of rules build a small global model with these, and send updates of clients to a rule."""

from asyncfeded.testing.rule_tests import (
    CLIENTS,
    FIRST_EPOCHS,
    PARAMS,
    STATISTICS,
    arrive,
    drive,
    first_epochs,
    measure,
    new_model,
)

__all__ = [
    "CLIENTS",
    "FIRST_EPOCHS",
    "PARAMS",
    "STATISTICS",
    "arrive",
    "drive",
    "first_epochs",
    "measure",
    "new_model",
    "send",
    "start",
]


def send(rule, model, state, client, w, epochs=FIRST_EPOCHS, num_samples=10):
    """A client's update to a rule."""
    return rule.on_arrival(measure(model, client, w, epochs, num_samples), model, state)


def start(rule, clients=2, epochs=2):
    """Two parameters, all clients out with version 0 at (0, 0)."""
    model = new_model(2, 0, clients)
    return model, rule.init(model, first_epochs(clients, epochs))
