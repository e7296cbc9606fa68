"""How a process becomes a rank: launchers, joining the job, the place of each rank, the shield against a rank's death."""

from importlib import import_module
from types import ModuleType


def load_launcher() -> ModuleType:
    """The module `launcher`, which loads MPI. Raises ValueError if no MPI can be loaded."""
    try:
        return import_module("asyncfeded.mpi.launcher")
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"no MPI library can be loaded ({str(error).splitlines()[0]}); install one (pip install 'asyncfeded[mpich]'), "
            f"load your site's module, or name its library in MPI4PY_LIBMPI"
        ) from None
