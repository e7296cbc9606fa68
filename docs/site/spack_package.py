"""A recipe of Spack for asyncfeded, to copy to REPOSITORY/packages/py-asyncfeded/package.py of your site's repository.

A sketch: it follows pyproject.toml, as a test of this repository holds, and has not been built by Spack here. Give it a
`git` or `url` of your own.
"""

import json

from spack.package import *


class PyAsyncfeded(PythonPackage):
    """Asynchronous federated learning over MPI, with staleness measured by the distance that the model has moved."""

    license("MIT")
    version("0.2.0")

    variant("digits", default=True, description="scikit-learn's digits, which the examples train on")
    variant("plots", default=True, description="Figures of runs and studies")

    depends_on("cxx", type="build")
    depends_on("cmake@3.18:", type="build")
    depends_on("ninja", type="build")
    depends_on("python@3.10:", type=("build", "link", "run"))
    depends_on("py-scikit-build-core@0.11:", type="build")
    depends_on("py-nanobind@2.4:", type="build")
    depends_on("mpi")

    with default_args(type=("build", "run")):
        depends_on("py-h5py@3.10:")
        depends_on("py-mpi4py@4:")
        depends_on("py-numpy@1.26:")
        depends_on("py-pydantic@2.9:")
        depends_on("py-rich@14.1:")
        depends_on("py-tomli@2:", when="^python@:3.10")
        depends_on("py-tomli-w@1.0:")
        depends_on("py-torch@2.3:")
        depends_on("py-typer@0.12:")
        depends_on("py-scikit-learn@1.4:", when="+digits")
        depends_on("py-matplotlib@3.8:", when="+plots")

    def test_train(self):
        """A run of 3 ranks ends with a line of JSON (`spack test run py-asyncfeded`)."""
        with open("run.toml", "w") as file:
            file.write('[task]\nname = "synthetic"\n[rule]\nepochs_max = 2\n')
        asyncfeded = which(self.prefix.bin.asyncfeded)
        said = asyncfeded("train", "run.toml", "--ranks", "3", "limits.updates=20", "run_dir=run", output=str)
        assert json.loads(said.splitlines()[-1])["updates"] == 20
