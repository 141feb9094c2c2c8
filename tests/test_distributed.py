"""Two processes on one machine (gloo) do what one process does, with copies or with shards.

They are started once, and train one run after another: starting takes longer than training.
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import foretoken as ft
from foretoken.cli import main
from foretoken.errors import InputError
from foretoken.training import train
from foretoken.training import trainer as trainer_module
from foretoken.training.processes import rows_per_pass, sharding
from test_recipes import masked_corpus
from test_training import Stop, metrics, settings, small_model, stop_at, weights

OPTIONS = {"steps": 20, "log_every": 1, "save_every": 10, "recipe": "joint", "head": "parallel"}

ALIKE = {
    "copies": {},
    "copies, warm-up": {"head": "sequential", "head_warmup": 5},
    "copies, curriculum": {"recipe": "frozen", "objective": {"schedule": "forward"}},
    "copies, accumulated": {"accumulate": 2, "recipe": "frozen"},
    "shards": {"fsdp": True},
    "shards, warm-up": {"fsdp": True, "head": "sequential", "head_warmup": 0.25},
    "shards, frozen": {"fsdp": True, "recipe": "frozen", "accumulate": 2},
    "shards, residual": {"fsdp": True, "recipe": "frozen", "head": "residual"},
    "shards, lora": {"fsdp": True, "recipe": "lora", "checkpoint_activations": True},
    "copies, muon": {"optimizer": "muon", "precision": "bf16", "recipe": "pretrain"},
    "shards, muon": {"fsdp": True, "optimizer": "muon"},
}
"""Runs that are done by one process and by two."""

ROUNDED = {"copies, muon": 0.02, "shards, muon": 0.02}
"""How far losses may be apart where something is computed in bfloat16: Muon always does."""

RESUMED = {"copies": {}, "shards": {"fsdp": True}, "shards, lora": {"fsdp": True, "recipe": "lora"}}
"""Runs that are stopped after 12 steps and go on with another number of processes."""


def run(out: Path, options: dict, report=None) -> ft.MTPModel:
    config = settings(**{**OPTIONS, **options})
    model = small_model(config.head)
    train(model, masked_corpus(), config, out, report=report)
    return model


def work(jobs: list[dict], command: list[str]) -> None:
    """What each of the two processes does; the command line ends it."""
    torch.set_num_threads(1)
    on_step_end = trainer_module._Follow.on_step_end
    job: dict = {}

    def stopping(self, args, state, control, **rest) -> None:
        on_step_end(self, args, state, control, **rest)
        if state.global_step == job.get("stop"):  # in both processes
            raise Stop

    trainer_module._Follow.on_step_end = stopping
    for job in jobs:
        os.environ.pop("ACCELERATE_USE_FSDP", None)  # transformers leaves it behind
        try:
            run(Path(job["out"]), job["options"])
        except Stop:
            assert "stop" in job
    os.environ.pop("ACCELERATE_USE_FSDP", None)
    sys.argv = command
    main()
    assert not torch.distributed.is_initialized()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every run of two processes."""
    directory = tmp_path_factory.mktemp("two")
    jobs = [{"out": str(directory / name), "options": options} for name, options in ALIKE.items()]
    for name, options in RESUMED.items():
        with pytest.raises(Stop):
            run(directory / f"1 to 2, {name}", options, stop_at(12))
        jobs.append({"out": str(directory / f"1 to 2, {name}"), "options": options})
        jobs.append({"out": str(directory / f"2 to 1, {name}"), "options": options, "stop": 12})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    (directory / "text.py").write_text("def mean(values):\n    return sum(values)\n" * 99)
    last = [
        "foretoken", "train", "tiny", "--data", str(directory / "text.py"), "--depth", "1",
        "--steps", "2", "--batch-size", "2", "--block-size", "16", "--save-every", "0",
        "--set", "fsdp=true", "--device", "cpu", "--out", str(directory / "command"),
    ]  # fmt: skip
    command = [sys.executable, "-W", "error", __file__, json.dumps(jobs), json.dumps(last)]
    output = directory / "output"
    with output.open("w") as file:
        processes = [
            subprocess.Popen(
                command,
                env={**environment, "RANK": rank, "LOCAL_RANK": rank},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            for rank in ("0", "1")
        ]
    try:
        ended = [process.wait(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert ended == [0, 0], output.read_text()[-3000:]
    return directory


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory):
    """Does a run in this one process, each only once."""
    directory, known = tmp_path_factory.mktemp("one"), {}

    def get(options: dict) -> tuple[list[dict], dict[str, torch.Tensor]]:
        key = json.dumps(options)
        if key not in known:
            out = directory / str(len(known))
            known[key] = (run(out, options), out)
        model, out = known[key]
        return metrics(out), weights(model)

    return get


def check(
    run: Path, lines: list[dict], expected: dict[str, torch.Tensor], apart: float = 1e-5
) -> None:
    """The same losses at each of 20 steps, and the same weights at the end."""
    found = metrics(run)
    assert [line["step"] for line in found] == list(range(1, 21))
    for ours, theirs in zip(found, lines, strict=True):
        assert ours["depth_losses"] == pytest.approx(theirs["depth_losses"], rel=0, abs=apart)
        norm = pytest.approx(theirs["gradient_norm"], rel=max(1e-4, 10 * apart))
        assert ours["gradient_norm"] == norm
    trained = weights(ft.MTPModel.from_pretrained(run / "model"))
    assert trained.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=10 * apart)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALIKE)
def test_two_processes_do_what_one_does(name: str, runs: Path, alone) -> None:
    options = {key: value for key, value in ALIKE[name].items() if key != "fsdp"}
    check(runs / name, *alone(options), ROUNDED.get(name, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_goes_on_with_another_number_of_processes(name: str, runs: Path, alone) -> None:
    options = RESUMED[name]
    run(runs / f"2 to 1, {name}", options)
    expected = alone({key: value for key, value in options.items() if key != "fsdp"})
    for way in ("1 to 2", "2 to 1"):
        check(runs / f"{way}, {name}", *expected)


@pytest.mark.slow
def test_the_command_line_is_heard_once(runs: Path) -> None:
    assert ft.MTPModel.from_pretrained(runs / "command" / "model").depth == 1
    output = (runs / "output").read_text()
    assert output.count("2 steps, 64 tokens") == 1


def test_a_step_is_divided_evenly() -> None:
    assert rows_per_pass(settings(batch_size=24, accumulate=3), 2) == 4
    with pytest.raises(InputError, match="2 processes × 3 passes; give a multiple of 6"):
        rows_per_pass(settings(batch_size=16, accumulate=3), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "use 'bf16-mixed'"),
        ({"recipe": "frozen", "cache_gb": 1}, "cache_gb"),
        ({"objective": {"distill": "marginal"}}, "marginal"),
    ],
)
def test_what_shards_cannot_do_is_said(options: dict, message: str) -> None:
    model = small_model()
    with pytest.raises(InputError, match=message) as caught:
        sharding(model, settings(fsdp=True, **options), 2)
    assert "\n" not in str(caught.value)
    assert sharding(model, settings(fsdp=True, **options), 1) == {}


if __name__ == "__main__":
    work(json.loads(sys.argv[1]), json.loads(sys.argv[2]))
