"""Two processes on one machine (gloo) do what one process does."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import foretoken as ft
from foretoken.training import train
from test_recipes import masked_corpus
from test_training import metrics, settings, small_model, weights

pytestmark = pytest.mark.slow

WORKER = """
    import json, sys
    sys.path.insert(0, {tests!r})
    import torch
    torch.set_num_threads(1)
    from pathlib import Path
    from foretoken.training import train
    from test_recipes import masked_corpus
    from test_training import settings, small_model, stop_at

    options = json.loads(sys.argv[1])
    out, stop, head = Path(options.pop("out")), options.pop("stop", None), options["head"]
    report = stop_at(stop) if stop else None
    try:
        train(small_model(head), masked_corpus(), settings(**options), out, report=report)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
"""


def launch(processes: int, **options) -> subprocess.CompletedProcess:
    """Train in processes of their own, as torchrun starts them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment |= options.pop("environment", {})
    script = Path(options["out"]).with_suffix(".py")
    script.write_text(textwrap.dedent(WORKER.format(tests=str(Path(__file__).parent))))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", str(script), json.dumps(options),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


OPTIONS = {"steps": 20, "log_every": 1, "save_every": 10, "max_grad_norm": 1.0}


@pytest.mark.parametrize(
    "lever",
    [
        {"head": "parallel", "recipe": "joint"},
        {"head": "sequential", "recipe": "joint", "head_warmup": 5},
        {"head": "parallel", "recipe": "frozen", "accumulate": 2},
    ],
    ids=["joint", "warm-up", "frozen, accumulated"],
)
def test_two_processes_reach_the_loss_of_one(tmp_path: Path, lever: dict) -> None:
    """Same rows per step, and as many targets: every loss to 1e-5 over 20 steps."""
    config = {**OPTIONS, **lever}
    result = launch(2, out=str(tmp_path / "two"), batch_size=2, **config)
    assert result.returncode == 0, result.stderr[-3000:]
    model = small_model(lever["head"])
    train(model, masked_corpus(), settings(batch_size=4, **config), tmp_path / "one")
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert [line["step"] for line in two] == list(range(1, 21))
    for ours, theirs in zip(two, one, strict=True):
        torch.testing.assert_close(
            torch.tensor(ours["depth_losses"]),
            torch.tensor(theirs["depth_losses"]),
            rtol=0, atol=1e-5, msg=lambda text, step=ours["step"]: f"step {step}: {text}",
        )  # fmt: skip
    trained = ft.MTPModel.from_pretrained(tmp_path / "two" / "model")
    for name, tensor in weights(model).items():
        torch.testing.assert_close(weights(trained)[name], tensor, rtol=1e-3, atol=1e-4)
