"""What a run needs for a resume, and how it becomes a file (reading.py reads it); also writes a model alone."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from asyncfeded.metric import Metrics
from asyncfeded.model.flat import Layout, named_views
from asyncfeded.store.rows import Rows
from asyncfeded.store.sealed import Arrays, text, write

SCHEMA = 4
"""Version of the layout of a checkpoint. Version 3 had no `learning_rate` of a client; version 2 a dataset for each base,
and accuracy and loss only, and no `steps` and `share` of a client; version 1 had no `workers_s`."""
FOLDER = "checkpoints"
"""Name of the folder of checkpoints in the folder of a run."""

NUMPY_HAS = {
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64, torch.complex64, torch.complex128,
}  # fmt: skip
"""Types of tensors that numpy has too."""

CLIENT_STATE = np.dtype(
    [
        ("epochs", np.int64),  # K that it was sent last
        ("rounds", np.int64),  # asked of it, the present one included
        ("steps", np.int64),  # done in its merged updates
        ("share", np.float64),  # of the run that was done when it got its last order, 0 to 1; NaN: it has yet to get it
        ("learning_rate", np.float64),  # that it was sent last; 0: that of the config
        ("updates", np.int64),  # merged
        ("base_version", np.int64),  # of the model that it was sent last; -1: none yet
        ("out", np.bool_),  # has an order, of these numbers and round rounds - 1; its update is not taken yet
        ("due_s", np.float64),  # when that update is due; infinity: never; NaN: no order, not yet given, or wall clock
        ("refused", np.int64),  # in a row
        ("dropped", np.bool_),  # it was refused too often, and gets no more orders
    ]
)


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two updates. Arrays are C-contiguous, in host memory."""

    config: str
    """Resolved, as TOML."""
    provenance: dict[str, str]
    """Provenance of the program (record.provenance)."""
    time_s: float
    """Time on the run's clock."""
    wall_s: float
    """Wall time of training; `busy_s`, `evaluating_s` and `compute_s` are also wall times (see `Server`)."""
    workers_s: float
    """`wall_s`, summed over the workers, whose number may have changed."""
    busy_s: float
    evaluating_s: float
    compute_s: float
    version: int
    """t, the version of the global model."""
    updates: int
    """Updates merged."""
    refused: int
    update_rows: int
    """How many rows of the record's `updates` belong to this state: the rows after them came later."""
    evaluation_rows: int
    """As `update_rows`, for `evaluations`."""
    client_evaluation_rows: int
    """As `update_rows`, for `client_evaluations`."""
    evaluation_due_s: float
    """When the next evaluation is due, on the run's clock."""
    score_version: int
    """Version at the last evaluation. -1: there was none; its values are then NaN."""
    score: np.ndarray
    """float64 (metrics,), the values of the last evaluation."""
    metrics: Metrics
    layout: Layout
    """Of the model; `own` is empty."""
    model: np.ndarray
    """float32 (size,), x_t."""
    bases: Rows
    """float32 (size,) by version: the bases that clients train from, except that of `version`, which is the model."""
    own_names: tuple[str, ...]
    """`Layout.own_names` of the messages."""
    own: Rows
    """float32 (own,) by client: what is its own. Empty if the clients have nothing."""
    clients: np.ndarray
    """CLIENT_STATE (clients,)."""
    rule: dict[str, np.ndarray]
    """State of the rule."""
    vectors: tuple[str, ...] = ()
    """Which arrays of `rule` have the length of the model, or of its parameters."""
    let_go: Callable[[], object] = int
    """Call it once the checkpoint is written: until then the server holds `bases` and `own` as they are."""

    @property
    def rows(self) -> dict[str, int]:
        """How many rows of each table of the record belong to this state."""
        numbers = (self.update_rows, self.evaluation_rows, self.client_evaluation_rows)
        return dict(zip(("updates", "evaluations", "client_evaluations"), numbers, strict=True))

    @property
    def file_name(self) -> str:
        """Name of its checkpoint file. These names sort by age."""
        return f"checkpoint-{self.update_rows:010d}.h5"


def save(path: Path, snapshot: Snapshot, slices: Sequence[str] = ()) -> int:
    """Write a checkpoint. Returns its size in bytes.

    Args:
        path: the file; replaced if it exists.
        snapshot: the state.
        slices: file name and checksum of each slice, in order, where slices.py has written all vectors; empty: the snapshot
            has them whole, and they are written here.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    layout, there = snapshot.layout, snapshot.vectors if slices else ()
    names = [entry.name.encode() for entry in layout.entries]
    vectors: Arrays = (
        {
            "slices": text([line.encode() for line in slices]),
            "shapes": text(json.dumps([entry.shape for entry in layout.entries]).encode()),
        }
        if slices
        else {
            **{
                f"model/{name}": view.numpy() for name, view in named_views(torch.from_numpy(snapshot.model), layout).items()
            },
            **numbered("bases", snapshot.bases),
            **numbered("own", snapshot.own),
        }
    )
    arrays: Arrays = {
        "config": text(snapshot.config.encode()),
        "names": text(names),
        "clients": snapshot.clients,
        "metrics": snapshot.metrics.rows(),
        "score": snapshot.score,
        **vectors,
        **({"own_names": text([name.encode() for name in snapshot.own_names])} if snapshot.own_names else {}),
        **{f"rule/{name}": array for name, array in snapshot.rule.items() if name not in there},
    }
    values = {name: getattr(snapshot, name) for name in numbers()}
    return write(path, arrays, {"schema": SCHEMA, "num_params": layout.num_params} | values | snapshot.provenance)


def numbered(what: str, rows: Rows) -> Arrays:
    """Rows as one array, beside their numbers; nothing where there is none."""
    return {f"{what}/numbers": np.array(rows.numbers, np.int64), f"{what}/rows": rows} if len(rows) else {}


def save_model(path: Path, state: Mapping[str, Tensor], version: int) -> None:
    """Write a model alone: one dataset per tensor of its state, under its name in the module.

    Shapes and types stay; types that numpy lacks (bfloat16) become float32, which holds their values. A tensor that has
    several names is written once.

    Args:
        path: the file; replaced if it exists.
        state: as `torch.nn.Module.state_dict` gives it.
        version: of the global model, stored as the attribute `version`.

    Raises:
        OSError: the file cannot be written; `path` is unchanged.
    """
    written: dict[tuple[int, torch.Size, torch.dtype], np.ndarray] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tensor.shape, tensor.dtype)
        if not tensor.numel() or key not in written:
            host = tensor.detach().cpu().contiguous()
            written[key] = (host if host.dtype in NUMPY_HAS else host.float()).numpy()
        arrays[name] = written[key]
    write(path, arrays, {"version": version})


def numbers() -> dict[str, type[int] | type[float]]:
    """The fields of a snapshot that are numbers, and the type of each."""
    kinds = {field.name: field.type for field in fields(Snapshot)}
    return {name: kind for name, kind in kinds.items() if kind is int or kind is float}
