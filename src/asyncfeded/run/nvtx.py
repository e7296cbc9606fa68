"""NVTX ranges for Nsight Systems, with the names that `asyncfeded trace` uses, while nsys records this process."""

import os
from collections.abc import Callable
from functools import wraps
from typing import Any

from asyncfeded import accelerator

RECORDING = ("NSYS_PROFILING_SESSION_ID", "NVTX_INJECTION64_PATH")
"""Variables that nsys sets in the processes that it records."""


def mark(owner: object, **names: str) -> None:
    """Put a range around each call of methods of an object, by method its name.

    Where nsys does not record, or torch was built without CUDA, the object stays as it is: a call then costs what it did.
    """
    if not any(name in os.environ for name in RECORDING) or accelerator.nvtx() is None:
        return
    for method, name in names.items():
        setattr(owner, method, _ranged(getattr(owner, method), name))


def mark_server(server: object, wire: object, model: object, evaluator: object, writer: object) -> None:
    """Put ranges around what a server does; most rules merge while the reply is sent."""
    mark(wire, _receive="receive")
    mark(server, _take="update", _send="reply")
    mark(model, distances="measure", _merge_up_to="merge")
    mark(evaluator, start="evaluate", step="evaluate")
    mark(writer, start="checkpoint")


def _ranged(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    nvtx = accelerator.nvtx()

    @wraps(method)
    def ranged(*given: Any, **named: Any) -> Any:  # noqa: ANN401, as the method that it stands for
        nvtx.range_push(name)
        try:
            return method(*given, **named)
        finally:
            nvtx.range_pop()

    return ranged
