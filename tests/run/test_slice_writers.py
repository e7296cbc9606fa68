"""A run of several server ranks goes on from its checkpoint, with as many server ranks and workers as then start."""

import pytest

from conftest import run_asyncfeded
from run.sliced import RUN, differing, told

OF_LIMITS = {"next_epochs", "share", "bytes"}
"""What a row tells of the reply, which the last update before a limit has not."""


@pytest.mark.parametrize("servers", [1, 3])
def test_a_run_goes_on_with_another_number_of_server_ranks_and_of_workers(own_mpi, tmp_path, servers):
    """And once with bases on disk."""
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    assert own_mpi.train(2, "run.toml", "run_dir=whole", cwd=tmp_path).result
    disk = ("bases=disk", "bases_dir=.", "bases_gb=0.02") if servers == 3 else ()
    arguments = ("run.toml", "servers=2", *disk, "limits.updates=5", "checkpoint.every_updates=2", "run_dir=on")
    assert own_mpi.train(3, *arguments, cwd=tmp_path).result["updates"] == 5
    newest = sorted((tmp_path / "on" / "checkpoints").glob("checkpoint-*"))[-1]
    size = sum(path.stat().st_size for path in newest.parent.glob(f"*-{newest.stem.partition('-')[2]}*"))
    assert f"{newest.name}: {size / 1e6:.1f} MB in " in (tmp_path / "on" / "log.txt").read_text()
    on = ("resume", "on", "--ranks", servers + 2, f"servers={servers}", "limits.updates=12")
    assert run_asyncfeded(*on, cwd=tmp_path, env=own_mpi.env).result["updates"] == 12
    assert set(differing(told(tmp_path / "on"), told(tmp_path / "whole"))) <= OF_LIMITS
