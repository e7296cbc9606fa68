"""The state of a run as files: checkpoints, and the trained model `model.h5`. Each is written whole or not at all.

A file is HDF5 after a head that holds its checksum (store/sealed.py). Nothing in it is pickled. A checkpoint of schema 4 is
`run_dir/checkpoints/checkpoint-<rows>.h5`, where <rows> is the number of update rows in the record:

    attributes      schema; num_params: so many first elements of the model's buffer are parameters, the rest are
                    statistics; the numbers of `Snapshot`; the texts of `Snapshot.provenance`
    config          text, the resolved config as TOML
    names           text (tensors,), names of the model's tensors in the order of its buffer
    model/<name>    float32, a parameter or a statistic, under its name in the module
    bases           `rows`, float32 (bases, size), the base models, and `numbers`, int64 (bases,), the version of each; a
                    base is stored once, however many clients train from it
    own             `rows`, float32 (clients, own), what is each client's own, and `numbers`, int64 (clients,), of which
                    client; only where the clients have something: the state of their optimizers
    own_names       text (own tensors,), name and shape of each tensor in such a row, in order
    clients         CLIENT_STATE (clients,)
    metrics         METRIC (metrics,), see metric.py
    score           float64 (metrics,), the values of the last evaluation
    rule/<name>     the rule's state

Where the server has several ranks, the vectors (model, bases, own, and those of the rule) lie in files beside it, one for
each rank (slices.py); the checkpoint then has `slices`, text (ranks,), name and checksum of each file, and `shapes`, text,
the shapes of the tensors as JSON.

A checkpoint holds no state of a random generator and no position in the data: both follow from the config's seed, the
client and the number of its round (seeds.py). To load the weights into a module (it keeps its own masks and integer
buffers, hence `strict=False`; `model.h5` holds these too):

    file = h5py.File("runs/mine/checkpoints/checkpoint-0000000120.h5")
    weights = {name: torch.tensor(file["model"][name][()]) for name in file["names"].asstr()}
    module.load_state_dict(weights, strict=False)
"""

from asyncfeded.store.checkpoint.reading import MOST_EPOCHS, Found, checkpoints, describe_checkpoint, newest, read_checkpoint
from asyncfeded.store.checkpoint.slices import save_slice
from asyncfeded.store.checkpoint.snapshot import CLIENT_STATE, FOLDER, Snapshot, save, save_model
from asyncfeded.store.checkpoint.writer import Writer, Written
from asyncfeded.store.rows import Rows

__all__ = [
    "CLIENT_STATE",
    "FOLDER",
    "MOST_EPOCHS",
    "Found",
    "Rows",
    "Snapshot",
    "Writer",
    "Written",
    "checkpoints",
    "describe_checkpoint",
    "newest",
    "read_checkpoint",
    "save",
    "save_model",
    "save_slice",
]
