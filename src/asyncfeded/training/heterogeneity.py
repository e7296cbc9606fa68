"""How slow each client is, and which rounds fail; all declared in the config and drawn from the seed of the run.

The task decides how much data a client has. On the virtual clock these figures determine when an update arrives; on the
wall clock a client paces itself by them.
"""

from dataclasses import dataclass

import numpy as np

from asyncfeded.config import Config
from asyncfeded.seeds import Stream, numpy_rng
from asyncfeded.training.rounds import Workload
from asyncfeded.wire.messages import Order

PROFILE = np.dtype(
    [
        ("slowdown", np.float64),  # factor on the time of the work
        ("batch_size", np.int32),
        ("epochs", np.int32),  # first K, in epochs or in steps (training.unit)
        ("delay_s", np.float64),  # delay of the network, for each round
        ("round_s", np.float64),  # declared time of a round with the first K
        ("samples", np.int64),  # number of training samples
    ]
)
"""The profile of a client, as stored in the record."""


@dataclass(frozen=True)
class ClientProfiles:
    """The profiles of all clients, and the failures and times of their rounds that follow from them."""

    clients: np.ndarray
    """PROFILE (clients,)."""
    error_probability: float
    seed: int
    workloads: list[Workload]
    """What K means for each client."""
    declared: bool = False
    """Whether the config gives `round_s`; otherwise it is estimated from the samples."""

    def lost_rounds(self, client: int, number: int) -> float:
        """The time that failures before an update cost, in units of the client's normal round.

        With probability p a round yields no update and costs uniform(0, 3) normal rounds; the client then trains again
        (the authors' experiment, arXiv 2205.13797, read off their published runs).

        Args:
            client: id of the client.
            number: number of the round.
        """
        lost = 0.0
        if self.error_probability:
            rng = numpy_rng(self.seed, Stream.ERRORS, client, number)
            while rng.random() < self.error_probability:
                lost += rng.uniform(0.0, 3.0)
        return lost

    def due(self, order: Order, now: float) -> float:
        """When the update of an order given now arrives on the virtual clock, with failures and network (`clock.Due`)."""
        profile = self.clients[order.client]
        normal = self._round_s(order)
        return float(now + profile["delay_s"] + normal * (1.0 + self.lost_rounds(order.client, order.round)))

    def pause_s(self, order: Order, took_s: float) -> float:
        """How long a client pauses after a round on the wall clock: the rest of a declared round, failures and network.

        Args:
            order: the order of the round.
            took_s: how long the round took.
        """
        round_s = max(took_s, self._round_s(order)) if self.declared else took_s
        lost = self.lost_rounds(order.client, order.round)
        return float(self.clients["delay_s"][order.client] + round_s - took_s + round_s * lost)

    def _round_s(self, order: Order) -> float:
        profile = self.clients[order.client]
        return float(profile["round_s"] * order.epochs / profile["epochs"])


def draw(config: Config, sizes: np.ndarray) -> ClientProfiles:
    """Draw the profiles of all clients.

    Args:
        config: config of the run.
        sizes: int64 (clients,), number of training samples of each client.
    """
    settings, training = config.heterogeneity, config.training
    profiles = np.zeros(len(sizes), PROFILE)
    spread = np.exp(settings.slowdown_sigma * numpy_rng(config.seed, Stream.SPEED).standard_normal(len(sizes)))
    profiles["slowdown"] = np.resize(settings.slowdown, len(sizes)) * spread / spread.min()
    profiles["batch_size"] = np.resize(settings.batch_size or training.batch_size, len(sizes))
    profiles["epochs"] = np.resize(settings.epochs or training.first, len(sizes))
    profiles["delay_s"] = np.resize(settings.delay_s, len(sizes))
    profiles["samples"] = sizes
    lots = zip(sizes.tolist(), profiles["batch_size"].tolist(), strict=True)
    workloads = [Workload(samples, batch_size, training) for samples, batch_size in lots]
    if settings.round_s:
        work_s = np.resize(settings.round_s, len(sizes))
    elif training.unit == "epochs":
        work_s = settings.sample_s * sizes * profiles["epochs"]
    else:
        done = zip(workloads, profiles["epochs"].tolist(), strict=True)
        work_s = settings.sample_s * np.array([workload.of(K).samples for workload, K in done])
    profiles["round_s"] = work_s * profiles["slowdown"]
    return ClientProfiles(profiles, settings.error_probability, config.seed, workloads, bool(settings.round_s))
