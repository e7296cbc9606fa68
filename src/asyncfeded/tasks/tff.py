"""The HDF5 layout that TensorFlow Federated publishes: one file, a group `examples/<name>` for each writer or role.

Opens such files and finds their fields; the task checks the contents of a field.
"""

from pathlib import Path

import h5py


def open_file(path: Path, who: str) -> h5py.File:
    """The file, with its group `examples` looked at.

    Args:
        path: of the file.
        who: what a group of samples belongs to, for messages: `writer` or `role`.

    Raises:
        ValueError: there is no such file, it is not HDF5, or it has no groups.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        what = "no such file" if not path.exists() else f"not a readable HDF5 file ({error})"
        raise ValueError(f"{path}: {what}; give the path of a data set as task.train=... and task.test=...") from None
    if not isinstance(file.get("examples"), h5py.Group) or len(file["examples"]) == 0:
        file.close()
        raise ValueError(
            f"{path}: no group `examples` with a group for each {who}, as TensorFlow Federated lays out its data"
        )
    return file


def find(file: h5py.File, where: str, name: str, field: str, fields: str) -> h5py.Dataset:
    """The dataset `examples/<name>/<field>`; nothing of it is read.

    Args:
        file: as `open_file` gave it.
        where: file and name, for the message.
        name: of the writer or role.
        field: wanted.
        fields: all that are expected, for the message.

    Raises:
        ValueError: there is no such dataset.
    """
    group = file["examples"][name]
    dataset = group.get(field) if isinstance(group, h5py.Group) else None
    if not isinstance(dataset, h5py.Dataset):
        raise ValueError(f"{where}: no field {field!r}, expected {fields}")
    return dataset
