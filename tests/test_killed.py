"""A run that is killed again and again ends with the bits of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import foretell as ft
from alike import tried_once
from foretell.training import train
from runs import FINISHED, corpus, equal, metrics, settings, small_model, weights

RUNS = {
    "muon, bf16, accumulated, warm-up": {
        "recipe": "joint", "optimizer": "muon", "precision": "bf16", "accumulate": 2,
        "head_warmup": 8,
    },
    "dropout under adapters": {"recipe": "lora", "lora": {"rank": 2, "dropout": 0.2}},
}  # fmt: skip
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
"""Audit events (see `sys.addaudithook`) around which files change."""


def run(out: Path, options: dict) -> ft.MTPModel:
    model = small_model()
    train(model, corpus(), settings(save_every=3, log_every=1, **options), out)
    return model


def work(out: Path, options: dict, moments: list[int]) -> None:
    """Train in one process after another, each killed when it touches the run's files for the
    n-th time; stop after the last, or when the run is through.
    """
    import torch

    torch.set_num_threads(1)
    for moment in moments:
        if (child := os.fork()) == 0:
            seen = 0

            def watch(event: str, arguments: tuple, moment: int = moment) -> None:
                nonlocal seen
                if event in EVENTS and str(out) in str(arguments[0]):
                    seen += 1
                    if seen == moment:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(watch)
            run(out, options)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)
        if status != signal.SIGKILL:
            return


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_killed_at_any_moment(name: str, tmp_path: Path) -> None:
    out, options = tmp_path / "run", RUNS[name]
    moments = [random.Random(name).randrange(1, 90) for _ in range(6)]
    command = [sys.executable, __file__, str(out), json.dumps(options), json.dumps(moments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout.split().count(str(int(signal.SIGKILL))) >= 3, ended.stderr[-3000:]
    if not (out / "model").exists():
        run(out, options)
    whole = run(tmp_path / "whole", options)
    assert equal(weights(ft.MTPModel.from_pretrained(out / "model")), weights(whole))
    assert [line["step"] for line in metrics(out)] == list(range(1, 21))
    assert {path.name for path in out.iterdir()} == FINISHED


if __name__ == "__main__":
    with tried_once():
        small_model()  # what it can do is known to every process that follows
        work(Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3]))
