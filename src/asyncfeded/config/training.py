"""The section `training`: what a client does between two messages."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from asyncfeded.config.settings import INT32_MAX, Count, Settings
from asyncfeded.override import Word

INT64_MAX = 2**63 - 1
OWN_KEYS = ("params", "lr", "weight_decay")
"""Arguments of an optimizer that have a key of their own, or none."""


class Training(Settings):
    """What a client does between two messages: K epochs, or K steps, over its own data."""

    unit: Literal["epochs", "steps"] = "epochs"
    """What K counts, here, in heterogeneity.epochs and in the rule: epochs (the paper) or steps of the optimizer. Steps go
    on through epochs, each shuffled anew, until the round is over."""
    epochs: Count = 2
    """Local epochs of a client's first round (the first K), where unit = "epochs"."""
    steps: int = Field(0, ge=0, le=INT32_MAX)
    """Local steps of a client's first round (the first K), where unit = "steps", which needs it. Rules that choose K have
    bounds of their own (rule.epochs_max, also in steps)."""
    batch_size: Count = 32
    """Samples per batch. A step takes one batch, or `accumulate` of them."""
    last_batch: Literal["keep", "drop", "join"] = "keep"
    """What becomes of the last samples of an epoch where they do not fill a batch: keep (a smaller batch), drop (this
    epoch leaves them out; each epoch shuffles anew) or join (they join the batch before). A client with fewer samples than
    a batch trains them all in one. Batch norm cannot train on one sample: drop and join avoid such a batch."""
    accumulate: Count = 1
    """Batches of a step: its gradient is that of the mean over all their samples. The last step of an epoch takes the
    batches that are left."""
    optimizer: str = "sgd"
    """sgd, or any optimizer of torch.optim by its name, such as adamw; capitals do not matter."""
    optimizer_options: dict[str, Any] = {}
    """Other arguments of the optimizer by name, such as {betas = [0.9, 0.95]} or, for sgd, {nesterov = true}."""
    learning_rate: float = Field(0.05, gt=0)
    """Learning rate of the optimizer, before the schedule."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Momentum of sgd. Other optimizers have it in optimizer_options."""
    optimizer_state: Literal["fresh", "kept"] = "fresh"
    """What becomes of the optimizer's state, such as momentum, when a round ends: fresh (it begins anew in every round,
    since it was gathered on another model than the one received) or kept (it is the client's own, and goes on in its next
    round, wherever the client then trains). What is kept goes with every message, in both directions, and the server holds
    it for each client: with momentum, a model more; with Adam, two."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the optimizer, in the optimizer's own sense: an L2 penalty for sgd and adam, decoupled for adamw,
    whose own default (0.01) does not count."""
    loader_workers: int = Field(0, ge=0)
    """Processes of each rank that read batches ahead, where the task gives a data set and not tensors; they take a second or
    two to start. 0: the rank reads them itself. The result is the same with any number."""
    proximal: float = Field(0.0, ge=0)
    """mu of the proximal term (mu / 2) ||w - x_s||^2 in the local loss (FedProx). 0: off."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the learning rate goes from learning_rate to learning_rate_end: not at all, in a straight line, or along half a
    cosine."""
    schedule_over: Literal["steps", "rounds", "run"] = "steps"
    """What the schedule counts: the steps or the rounds that the client has done, or the part of the run that is done when
    the server sends the model, by limits.updates and limits.seconds (the nearest counts). Over rounds and the run, a round
    has one rate."""
    schedule_length: int = Field(0, ge=0, le=INT64_MAX)
    """Steps or rounds of a client until the schedule is at its end, where it stays. 0 with schedule_over = "run", whose
    limits are its length."""
    warmup: int = Field(0, ge=0, le=INT64_MAX)
    """Steps of a client, counted over its rounds, in which the learning rate rises in a straight line, from 1 / warmup of
    it in the first step. A schedule over steps begins after them. 0: none."""
    learning_rate_end: float = Field(0.0, ge=0)
    """Learning rate at the end of the schedule."""
    clip_norm: float = Field(0.0, ge=0)
    """Longest gradient of a step: a longer one is scaled down to this L2 norm, over all parameters. 0: off."""
    precision: Literal["float32", "bf16", "fp16"] = "float32"
    """Type in which the client computes (torch.autocast); model, gradients and optimizer stay float32. fp16 scales the loss,
    anew in every round from 1024 on, leaves out steps whose gradients are not finite, and needs a GPU."""
    sync_batch_norm: bool = False
    """Whether batch norm, in training, normalises by the whole batch where several ranks train a client (ranks_per_client).
    Every batch must then have a sample for each rank. false: each rank normalises by its own part of the batch, and the
    statistics of the first rank are the client's."""
    compile: bool = False
    """Whether torch.compile makes the model faster; it needs a C++ compiler and some seconds at the first batch of each
    size. Results are then the same to the bit only where the compiler makes the same code, such as on processors of one
    kind with the same versions."""
    channels_last: bool = False
    """Whether 4-d tensors of a batch (images) get the memory format torch.channels_last, which convolutions on a GPU, and
    some on a CPU, are faster with. Results may then differ in the last bits."""

    @property
    def first(self) -> int:
        """K of a client's first round."""
        return self.epochs if self.unit == "epochs" else self.steps

    @field_validator("optimizer")
    @classmethod
    def _small(cls, value: str) -> str:
        return value.lower()

    @field_validator("optimizer_options", mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:  # noqa: ANN401, what a user gives
        if not isinstance(value, dict):
            return value
        return {key: option.toml if isinstance(option, Word) else option for key, option in value.items()}

    @model_validator(mode="after")
    def _agree(self) -> "Training":
        if self.unit == "steps" and not self.steps:
            raise ValueError('unit = "steps" needs training.steps, the steps of a client\'s first round')
        if self.unit == "epochs" and self.steps:
            raise ValueError(f'steps = {self.steps}, but K counts epochs; set training.unit = "steps", or leave steps out')
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(
                f"momentum = {self.momentum:g} is that of sgd, but optimizer = {self.optimizer}; give {self.optimizer} what "
                f"it knows in training.optimizer_options"
            )
        if self.compile and self.sync_batch_norm:
            raise ValueError(
                "compile cannot compile what ranks tell each other in sync_batch_norm; set one of them to false"
            )
        for key in self.optimizer_options.keys() & {*OWN_KEYS, *(["momentum"] if self.optimizer == "sgd" else [])}:
            own = {"params": "which the program gives", "lr": "set training.learning_rate"}
            raise ValueError(f"optimizer_options has {key}; {own.get(key, f'set training.{key}')}")
        self._check_schedule()
        return self

    def _check_schedule(self) -> None:
        length, over = self.schedule_length, self.schedule_over
        if self.schedule == "constant":
            for key in ("schedule_over", "schedule_length", "learning_rate_end"):
                if (value := getattr(self, key)) != type(self).model_fields[key].default:
                    raise ValueError(f"{key} = {value}, but schedule = constant; set training.schedule to linear or cosine")
        elif over == "run" and length:
            raise ValueError(f"schedule_length = {length}, but a schedule over the run is as long as the run; leave it out")
        elif over != "run" and not length:
            raise ValueError(f"schedule = {self.schedule} over {over} needs training.schedule_length, in {over} of a client")
        elif over == "steps" and self.warmup >= length:
            raise ValueError(
                f"warmup = {self.warmup} leaves nothing of schedule_length = {length} steps; lower one or raise the other"
            )
