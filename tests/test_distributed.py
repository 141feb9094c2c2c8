"""Two processes on one machine (gloo) do what one process does, with copies or with shards.

They are started once for all runs: starting takes longer than training.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.distributed import TCPStore

import foretell as ft
from alike import tried_once
from foretell.cli import main
from foretell.errors import InputError
from foretell.training import following, report, train, trainer
from foretell.training.processes import FSDP_NEEDS, is_sharded, rows_per_pass, shards
from runs import (
    VOCAB,
    Stop,
    masked_corpus,
    metrics,
    settings,
    small_model,
    stop_at,
    stream,
    weights,
)

pytestmark = pytest.mark.usefixtures("_tried_once")

OPTIONS = {"steps": 6, "log_every": 1, "save_every": 4, "recipe": "joint", "head": "parallel"}

RUNS = {
    "copies": {
        "plain": {"steps": 8, "evaluate_every": 2},
        "warm-up": {"head": "sequential", "head_warmup": 3},
        "curriculum": {
            "recipe": "frozen", "accumulate": 2, "objective": {"schedule": "forward"},
            "head": {"kind": "parallel", "depth": 2, "vocabulary": 30},
        },
        "muon": {"recipe": "pretrain", "optimizer": "muon", "precision": "bf16"},
        "streamed": {"streaming": True},
    },
    "shards": {
        "plain": {"steps": 8, "evaluate_every": 2},
        "warm-up": {
            "head_warmup": 0.25, "head": {"kind": "sequential", "depth": 2, "vocabulary": 30},
        },
        "residual": {"recipe": "frozen", "head": "residual", "accumulate": 2},
        "lora": {"recipe": "lora", "checkpoint_activations": True},
        "mixed": {"precision": "bf16-mixed", "accumulate": 2},
        "muon": {"optimizer": "muon"},
    },
}  # fmt: skip
ROUNDED = {"muon": 0.02, "mixed": 0.02}
"""How far losses may be apart where something is computed in bfloat16, which Muon always does."""


def run(out: Path, options: dict, report=None) -> ft.MTPModel:
    config = settings(**{**OPTIONS, **options})
    model = small_model(config.head, vocab=1024 if config.streaming else VOCAB)
    blocks = stream() if config.streaming else masked_corpus()
    train(model, blocks, config, out, held_out=masked_corpus(), report=report)
    return model


def work(jobs: list[dict], command: list[str]) -> None:
    """What each of the two processes does; the command line ends it."""
    torch.set_num_threads(1)
    told = following.Follow.__call__
    job: dict = {}

    def stopping(self, step) -> None:
        told(self, step)
        assert is_sharded(self.trainer.model) == self.trainer.config.fsdp
        if step.number == job.get("stop"):  # in both processes
            raise Stop

    following.Follow.__call__ = stopping
    report._save = lambda figure, path: path.touch()  # as in other tests, see conftest.py
    with tried_once():
        for job in jobs:
            try:
                run(Path(job["out"]), job["options"])
            except Stop:
                assert "stop" in job
        sys.argv = command
        main()
    assert not torch.distributed.is_initialized()


def launch(jobs: list[dict], command: list[str], output: Path) -> str:
    """What two processes that do `work` print, one after the other.

    They meet as under torchrun: the store that they share is not one of theirs, so that its port is
    never free in between and it outlives both.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    words = [sys.executable, "-W", "error", __file__, json.dumps(jobs), json.dumps(command)]
    files = [output.with_suffix(f".{rank}") for rank in range(2)]
    processes = []
    for rank, file in enumerate(files):
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with file.open("w") as out:
            processes.append(
                subprocess.Popen(
                    words, env={**environment, **ranks}, stdout=out, stderr=subprocess.STDOUT
                )
            )
    give_up = time.monotonic() + 240
    codes: list[int | None] = [None, None]
    try:
        while not any(codes) and codes != [0, 0] and time.monotonic() < give_up:
            time.sleep(0.1)
            codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = [file.read_text() for file in files]
    ends = [f"exit code {code}: {text[-2000:]}" for code, text in zip(codes, said, strict=True)]
    assert codes == [0, 0], "\n\n".join(ends)  # None: still running, and killed
    return "".join(said)


def check(name: str, run: Path, expected: Path, model: ft.MTPModel) -> None:
    """The same losses at every step, and the same weights at the end."""
    apart = ROUNDED.get(name, 1e-5)
    found, wanted = metrics(run), metrics(expected)
    assert [line["step"] for line in found] == [line["step"] for line in wanted], name
    for ours, theirs in zip(found, wanted, strict=True):
        losses = pytest.approx(theirs["depth_losses"], rel=0, abs=apart)
        assert ours["depth_losses"] == losses, (name, ours["step"])
        held_out = pytest.approx(theirs["held_out_losses"], rel=0, abs=apart)
        assert ours["held_out_losses"] == held_out, (name, ours["step"])
        norm = pytest.approx(theirs["gradient_norm"], rel=max(1e-4, 10 * apart))
        assert ours["gradient_norm"] == norm, (name, ours["step"])
    trained = weights(ft.MTPModel.from_pretrained(run / "model"))
    for parameter, tensor in weights(model).items():
        torch.testing.assert_close(
            trained[parameter], tensor, rtol=1e-3, atol=10 * apart,
            msg=lambda text, parameter=parameter: f"{name}, {parameter}: {text}",
        )  # fmt: skip


KINDS = [kind for kind in RUNS if kind == "copies" or torch.__version__ >= FSDP_NEEDS]


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    """Whole runs, runs that go on with another number of processes, and the command line."""
    jobs = []
    for kind in KINDS:
        shared = {"fsdp": kind == "shards"}
        for name, options in RUNS[kind].items():
            jobs.append({"out": str(tmp_path / kind / name), "options": {**options, **shared}})
        long = {**RUNS[kind]["plain"], **shared}
        with pytest.raises(Stop):
            run(tmp_path / kind / "1 to 2", long, stop_at(5))
        jobs.append({"out": str(tmp_path / kind / "1 to 2"), "options": long})
        jobs.append({"out": str(tmp_path / kind / "2 to 1"), "options": long, "stop": 5})
    (tmp_path / "text.py").write_text("def mean(values):\n    return sum(values)\n" * 99)
    command = [
        "foretell", "train", "tiny", "--data", str(tmp_path / "text.py"), "--depth", "1",
        "--steps", "2", "--batch-size", "2", "--block-size", "16", "--save-every", "0",
        "--set", f"fsdp={'shards' in KINDS}", "--device", "cpu", "--out", str(tmp_path / "command"),
    ]  # fmt: skip
    said = launch(jobs, command, tmp_path / "output")
    for kind in KINDS:
        check_kind(kind, tmp_path / kind)
    assert ft.MTPModel.from_pretrained(tmp_path / "command" / "model").depth == 1
    assert said.count("2 steps, 64 tokens") == 1  # heard once


def check_kind(kind: str, runs: Path) -> None:
    """All runs with copies, or with shards, against the same ones alone."""
    shared = {"fsdp": kind == "shards"}
    run(runs / "2 to 1", {**RUNS[kind]["plain"], **shared})
    for name, options in RUNS[kind].items():
        model = run(runs / f"{name} alone", options)
        check(name, runs / name, runs / f"{name} alone", model)
        if name == "plain":
            for way in ("1 to 2", "2 to 1"):
                check(way, runs / way, runs / "plain alone", model)


def test_two_processes_share_one_target(monkeypatch) -> None:
    """What is rare, such as a token of a small draft vocabulary, weighs as much as for one."""
    monkeypatch.setattr(trainer, "mean_over_processes", lambda counts: counts / 2)
    one = SimpleNamespace(_targets_of=lambda batch: batch)
    passes = [torch.tensor([3.0, 1.0, 0.0]), torch.tensor([3.0, 0.0, 0.0])]
    assert trainer.Trainer._counts(one, passes).tolist() == [3.0, 0.5, 1.0]


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
        ({"compile": True}, "compile"),
        ({}, "fsdp needs torch 99"),
    ],
)
def test_what_shards_cannot_do_is_said(options: dict, message: str, monkeypatch) -> None:
    config = settings(fsdp=True, **options)
    needs = "2" if options else "99"
    monkeypatch.setattr("foretell.training.processes.FSDP_NEEDS", needs)
    with pytest.raises(InputError, match=message) as caught:
        shards(config, 2)
    assert "\n" not in str(caught.value)
    assert not shards(config, 1)


def test_what_accelerate_launch_asks_for(monkeypatch) -> None:
    monkeypatch.setattr("foretell.training.processes.FSDP_NEEDS", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert shards(settings(), 2)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match="DeepSpeed is not supported"):
        shards(settings(), 2)


if __name__ == "__main__":
    work(json.loads(sys.argv[1]), json.loads(sys.argv[2]))
