"""Reads and writes the weights of a module as other programs have them: torch (.pt, .pth), safetensors, and HDF5.

Weights are a state dict: a tensor by its name in the module. Nothing but tensors is ever unpickled.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyncfeded.files.hdf5 import Group, open_hdf5
from asyncfeded.files.plain import FileFaultError, cannot_read, check_file

MODEL = "model.h5"
"""Name of the model in the folder of a run."""
ADVICE = "give a file of weights, or the folder of a run that has ended"
SUFFIXES = (".pt", ".pth", ".safetensors")
"""Kinds of files that `write_weights` writes."""


def weights_file(place: Path) -> Path:
    """The file of weights that a user means: the file itself, or the model in the folder of a run that has ended.

    Raises:
        FileFaultError: there is none.
    """
    if not place.is_dir():
        check_file(place, ADVICE)
        return place
    if not (place / MODEL).exists():
        raise FileFaultError(f"{place}: has no {MODEL}; {ADVICE}; asyncfeded export writes that of a run that goes on")
    return place / MODEL


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a file of weights, by name, in host memory.

    Args:
        path: a state dict that torch.save wrote, or a file whose name ends in .safetensors, .h5 or .hdf5.

    Raises:
        FileFaultError: there is no such file, it cannot be read, or it holds something other than tensors by name.
    """
    check_file(path)
    if path.suffix.lower() in (".h5", ".hdf5"):
        with open_hdf5(path) as file:
            return dict(_arrays(file, "", {}))
    load = _safetensors().load_file if path.suffix.lower() == ".safetensors" else _load
    try:
        state = load(path)
    except Exception as error:  # a damaged file gives errors of many kinds
        raise FileFaultError(_no_weights(path, error)) from None
    if not isinstance(state, Mapping):
        raise FileFaultError(f"{path}: holds {type(state).__name__}, {EXPECTED}")
    if other := [name for name, value in state.items() if not (isinstance(name, str) and isinstance(value, Tensor))]:
        names = ", ".join(repr(name) for name in other[:5])
        raise FileFaultError(f"{path}: holds {names}, which {'are' if other[1:] else 'is'} no tensor; {EXPECTED}")
    return dict(state)


EXPECTED = "expected a state dict, tensors by name; write it with torch.save(module.state_dict(), FILE)"


def write_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict, whole or not at all. Names of one tensor stay names of one in .pt; safetensors has no such thing.

    Args:
        path: the file, one of `SUFFIXES`; it must not be there.
        state: tensors by name.

    Raises:
        ValueError: the file is there, or cannot be written, or its kind is unknown.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: of which kind? expected a name that ends in {', '.join(SUFFIXES)}")
    save: Callable[[Any, Path], None] = torch.save
    if path.suffix.lower() == ".safetensors":
        save, state = _safetensors().save_file, {name: t.detach().cpu().contiguous().clone() for name, t in state.items()}
    else:
        state = _alone(state)
    part = path.with_name(path.name + ".part")
    try:
        path.open("xb").close()  # the name is ours from here on
    except FileExistsError:
        raise ValueError(f"{path}: is there already; move it away, or give another name") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        save(state, part)
        part.chmod(path.stat().st_mode)  # safetensors makes files that nobody else may read
        part.replace(path)
    except BaseException as error:  # torch and safetensors have errors of their own for a full disk
        path.unlink(missing_ok=True)
        if not isinstance(error, Exception):
            raise
        raise ValueError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from None
    finally:
        part.unlink(missing_ok=True)


def _alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in memory of their own: torch.save writes all of a larger one that a tensor is a part of."""
    own: dict[tuple[int, torch.Size, torch.dtype], Tensor] = {}
    alone = {}
    for name, tensor in state.items():
        key = tensor.data_ptr(), tensor.shape, tensor.dtype
        if key not in own:
            own[key] = tensor.detach().cpu().clone()
        alone[name] = own[key]
    return alone


def _load(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _no_weights(path: Path, error: Exception) -> str:
    """Why torch or safetensors cannot read a file, as a sentence."""
    if isinstance(error, OSError) and error.errno:
        return cannot_read(path, error)
    if found := re.search(r"GLOBAL (\S+)", str(error)):
        return f"{path}: holds objects of Python besides tensors ({found[1]}); {EXPECTED}"
    said = (str(error) or type(error).__name__).splitlines()[0][:200]
    return f"{path}: cannot be read as weights ({said}); {EXPECTED}"


def _arrays(group: Group, prefix: str, seen: dict[tuple[int, int], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The arrays in a group of HDF5 and in its groups; names of one array give one tensor."""
    for name in group.names():
        if group.kind(name) == "group":
            yield from _arrays(group.group(name), f"{prefix}{name}/", seen)
            continue
        array = group.array(name)
        if array.dtype.kind not in "biufc":
            raise FileFaultError(f"{array.where}: is {array.dtype}, expected numbers: the weights of a module")
        if array.place not in seen:
            values = array.read()
            try:
                seen[array.place] = torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=False))
            except TypeError:
                raise FileFaultError(f"{array.where}: is {array.dtype}, which torch has not") from None
        yield prefix + name, seen[array.place]


def _safetensors() -> Any:  # noqa: ANN401, a module that may not be installed
    try:
        import safetensors.torch
    except ImportError:
        raise FileFaultError("files of safetensors need that package: pip install 'asyncfeded[safetensors]'") from None
    return safetensors.torch
