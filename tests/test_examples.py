"""The examples run as their files say, and end where the same loop without MPI ends: with one client, to the bit."""

import math
import sys
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import h5py
import pytest
import torch
from torch.utils.data import default_collate

from asyncfeded.config import load_config
from asyncfeded.seeds import Stream, seed_globals, seeded
from asyncfeded.tasks import load_task
from conftest import run, run_asyncfeded

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "launch" / "examples"
SMALL = {
    "resnet": ["task.width=4", "training.epochs=1", "training.batch_size=256"],
    "gpt": ["task.files=12", "task.width=16", "task.context=16", "training.warmup=4"],
    "unet": ["task.images=16", "task.side=8"],
    "regression": [],
    "large": ["training.batch_size=8", "training.loader_workers=1"],
    "lora": ["task.files=12", "task.context=16"],
}
"""What makes the run of an example short."""


@pytest.fixture(scope="session")
def example(tmp_path_factory):
    """The arguments of an example's run, with the data that it needs."""
    folder = tmp_path_factory.mktemp("examples")

    def make(name):
        more = []
        if name in ("resnet", "regression"):
            pytest.importorskip("sklearn", reason="the example needs scikit-learn")
        if name == "large":
            file = folder / "large.h5"
            if not file.exists():
                assert run([sys.executable, EXAMPLES / "large.py", file, 200], folder).status == 0
            more = [f"task.path={file}"]
        if name == "lora":
            if not find_spec("transformers"):
                pytest.skip("the example needs transformers")
            if not (folder / "gpt2").exists():
                assert run([sys.executable, "-c", TINY_GPT2], folder).status == 0
            more = [f"task.base={folder / 'gpt2'}"]
        return [str(EXAMPLES / f"{name}.toml"), *SMALL.get(name, ()), *more]

    return make


OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
TINY_GPT2 = """
import torch
from transformers import ByT5Tokenizer, GPT2Config, GPT2LMHeadModel

tokenizer = ByT5Tokenizer()
torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_positions=64, vocab_size=len(tokenizer))
GPT2LMHeadModel(config).save_pretrained("gpt2")
tokenizer.save_pretrained("gpt2")
"""
"""Makes a folder as a user has it."""


def plain(config, rounds):
    """The rounds of a client who is alone, as anybody writes them: no server, no messages. Returns the model."""
    training, seed, task = config.training, config.seed, load_task(config.task)
    seed_globals(seed, Stream.MODEL)
    model, data = task.model(), task.client_data(0, 1, seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    done = 0
    for number in range(rounds):
        seed_globals(seed, Stream.TRAINING, 0, number)
        keys = {"momentum": training.momentum} if training.optimizer == "sgd" else {}
        keys |= {"lr": training.learning_rate, "weight_decay": training.weight_decay} | training.optimizer_options
        optimizer = OPTIMIZERS[training.optimizer](trained, **keys)
        model.train()
        steps = training.steps if training.unit == "steps" else None
        for batch in islice(batches(data, training, seed, number), steps):
            for group in optimizer.param_groups:
                group["lr"] = rate(training, done, number / rounds)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=training.precision == "bf16"):
                loss = task.loss(model, batch)
            loss.backward()
            if training.clip_norm:
                torch.nn.utils.clip_grad_norm_(trained, training.clip_norm)
            optimizer.step()
            done += 1
    return model


def rate(training, done, share):
    """The learning rate in a step: a warm-up, and a cosine over the run."""
    warm = min(1.0, (done + 1) / training.warmup) if training.warmup else 1.0
    if training.schedule == "constant":
        return training.learning_rate * warm
    end = training.learning_rate_end / training.learning_rate
    return training.learning_rate * (warm * (end + (1.0 - end) * (1.0 + math.cos(math.pi * share)) / 2.0))


def batches(data, training, seed, number):
    """Epoch after epoch, each shuffled anew."""
    pair, taken = hasattr(data, "targets"), 0
    count = len(data.targets) if pair else len(data)
    for _ in range(training.epochs if training.unit == "epochs" else sys.maxsize):
        rows = list(torch.randperm(count).split(training.batch_size))
        if training.last_batch == "join" and len(rows) > 1 and len(rows[-1]) < training.batch_size:
            rows[-2:] = [torch.cat(rows[-2:])]
        for part in rows:
            if pair:
                yield data.inputs[part], data.targets[part]
            else:
                with seeded(seed, Stream.BATCH, 0, number, taken):
                    batch = default_collate([data[row] for row in part.tolist()])
                yield batch
            taken += 1


ALONE = ["clients=1", "clock=virtual", "rule.name=fedasync", "rule.alpha=1", "rule.rho=0", "limits.updates=3"]
"""One client, whose model becomes the global model."""


def train(mpi, ranks, folder, *arguments):
    """A run, as mpiexec starts it."""
    command = [sys.executable, "-m", "asyncfeded", "train", *arguments, f"run_dir={folder / 'run'}"]
    done = run(mpi.command((ranks, command)), folder, mpi.env)
    assert done.status == 0, str(done)
    return done.result


@pytest.mark.parametrize(
    ("name", "mpi", "ranks"),
    [
        ("resnet", "own_mpi", 2),
        ("gpt", "other_mpi", 5),
        ("unet", "own_mpi", 5),
        ("regression", "other_mpi", 2),
        ("large", "own_mpi", 2),
        ("lora", "other_mpi", 3),
    ],
)
def test_an_example_ends_where_a_plain_loop_ends(name, mpi, ranks, example, request, tmp_path):
    path, *overrides = example(name)
    train(request.getfixturevalue(mpi), ranks, tmp_path, path, *overrides, *ALONE)
    torch.set_num_threads(1)
    expected = plain(load_config(Path(path), [*overrides, *ALONE]), 3).state_dict()
    with h5py.File(tmp_path / "run" / "model.h5") as file:
        assert sorted(file) == sorted(expected)
        for key, tensor in expected.items():
            if not key.endswith("num_batches_tracked"):  # begins every round as it was made
                assert torch.equal(torch.tensor(file[key][()]), tensor), key


@pytest.mark.parametrize("name", ["unet", "inverse"])
def test_an_example_runs_with_all_its_clients(name, example, own_mpi, tmp_path):
    """On the wall clock, as its file says."""
    path, *overrides = example(name)
    ranks = {"unet": 3, "inverse": 5}[name]
    assert train(own_mpi, ranks, tmp_path, path, *overrides, "limits.updates=6")["updates"] == 6


def test_the_task_of_the_tutorial_trains(tmp_path):
    pytest.importorskip("sklearn", reason="the task needs scikit-learn")
    text = (ROOT / "docs" / "tutorials" / "own_task.md").read_text()
    for name in ("wine.py", "wine.toml"):
        (tmp_path / name).write_text(text.split(f'title="{name}"\n')[1].split("```")[0])
    assert len((tmp_path / "wine.py").read_text().splitlines()) <= 30
    assert (tmp_path / "wine.py").read_text() in (ROOT / "README.md").read_text()
    done = run_asyncfeded("train", "wine.toml", "--ranks", 4, cwd=tmp_path)
    assert done.status == 0, str(done)
    assert done.result["metrics"]["accuracy"] > 0.8
