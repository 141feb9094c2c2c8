"""Put a trained run into the package: weights, tokenizer and a model card with what was measured.

    python experiments/tiny/publish.py tiny-mtp --run runs/tiny-mtp --commit SHA --hardware "..."

Everything in the card is measured here on the held-out files, or read from the run.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
import yaml

from foretell import MTPModel
from foretell.checkpoints import load_tokenizer
from foretell.data import PackedBlocks
from foretell.data.stdlib import HELD_OUT, standard_library
from foretell.evaluation import measure_heads
from foretell.results import of_model, select, write_result
from foretell.results.provenance import provenance
from foretell.results.tables import ScoredByDepth

ROOT = Path(__file__).parents[2]
BUNDLED = ROOT / "src" / "foretell" / "bundled"

CARD = """---
license: apache-2.0
language: code
---

# {name}

{what} A Llama of {backbone:,} parameters ({layers} blocks of width {width}){heads}, byte-level BPE
with a vocabulary of {vocabulary}. It writes recognisable Python and is good for nothing but
trying foretell out.

| | |
|---|---|
| data | standard library of Python {python}: {files} files, {bytes:,} bytes |
| left out of it | tests, generated tables: see `foretell.data.stdlib` |
| licence | of the data: Python Software Foundation License 2; of the weights: Apache-2.0 |
| held out | {held_out} files, listed below |
| steps | {steps} of {batch} × {block} tokens: {tokens:,} tokens, {epochs} epochs |
| settings | `experiments/tiny/{name}.yaml`, commit {commit} |
| hardware | {hardware}, {minutes:.0f} minutes |
| torch, transformers | {torch}, {transformers} |
| held-out loss, next token | {bits:.3f} bits per byte ({nll:.3f} nats per token) |

Prediction by depth on the held-out files, teacher-forced. *Agrees* is how often the prediction is
the token that the backbone itself would choose there.

| depth | top-1 | top-5 | nats per token | agrees |
|---|---|---|---|---|
{depths}

Made by `experiments/tiny/`; the numbers are in `results/{name}.json`.

Held-out files: {held_out_list}.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=("tiny", "tiny-mtp"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--commit", required=True, help="of the code that trained it")
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--steps", type=int, help="where the metrics end before the last step")
    arguments = parser.parse_args()

    origin = provenance(0, "cpu", torch.float32)  # before anything here changes the checkout
    target = BUNDLED / arguments.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(arguments.run / "model", target)
    settings = yaml.safe_load((arguments.run / "config.yaml").read_text(encoding="utf-8"))
    metrics = (arguments.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in metrics]
    steps = arguments.steps or lines[-1]["step"]
    tokens = steps * settings["batch_size"] * settings["block_size"]
    minutes = lines[-1]["seconds"] / 60

    model = MTPModel.from_pretrained(target, dtype=torch.float32)
    blocks = PackedBlocks.from_documents(
        standard_library("held-out"), load_tokenizer(target), settings["block_size"]
    )
    found = measure_heads(model, blocks)
    rows = of_model(arguments.name, select(found.all_rows(), ScoredByDepth))
    write_result(
        ROOT / "results" / f"{arguments.name}.json",
        "experiments/tiny",
        {
            "training": settings,
            "trained_by_commit": arguments.commit,
            "hardware": arguments.hardware,
            "minutes": minutes,
            "data": "stdlib:held-out",
        },
        rows,
        origin,
    )
    train = list(standard_library("train"))
    heads = ""
    if model.head is not None:
        count = sum(p.numel() for p in model.head.parameters())
        heads = f" with {model.depth} parallel heads of {count:,} parameters"
    card = CARD.format(
        name=arguments.name,
        what="n = 4 from scratch: next token and three further ones, jointly."
        if model.head is not None
        else "Next-token training only.",
        backbone=sum(p.numel() for p in model.lm.parameters()),
        layers=model.backbone.num_layers,
        width=model.backbone.hidden_size,
        heads=heads,
        vocabulary=model.backbone.vocab_size,
        python=origin["python"],
        files=len(train),
        bytes=sum(len(document.text.encode()) for document in train),
        held_out=len(HELD_OUT),
        steps=steps,
        batch=settings["batch_size"],
        block=settings["block_size"],
        tokens=tokens,
        epochs=settings["epochs"],
        commit=arguments.commit,
        hardware=arguments.hardware,
        minutes=minutes,
        torch=origin["torch"],
        transformers=origin["transformers"],
        bits=found.bits_per_byte,
        nll=rows[0].nll.value,
        depths="\n".join(
            f"| {row.depth} | {100 * row.top1.value:.1f} % | {100 * row.top5.value:.1f} % "
            f"| {row.nll.value:.3f} | {100 * row.agreement.value:.1f} % |"
            for row in rows
        ),
        held_out_list=", ".join(f"`{name}`" for name in HELD_OUT),
    )
    (target / "README.md").write_text(card, encoding="utf-8")
    size = sum(file.stat().st_size for file in target.iterdir())
    print(f"{target.name}: {size / 1e6:.1f} MB, {found.bits_per_byte:.3f} bits per byte")


if __name__ == "__main__":
    main()
