"""Code that knows nothing of us, made faster: trl's GRPO trainer on a patched model.

    python -m pip install trl datasets
    python benchmarks/drop_in.py

The trainer calls the `generate` of a transformers model to draw completions. The same run is done
as it is and after `foretell.patch`: the backbone's passes and the CPU time within `generate`, at
temperature 1 and with the seeds that trl sets. The model learns on the way, so that its heads fall
behind; drafts cost acceptance then, never the distribution. At the end both ways continue the same
prompts greedily with the trained model, which must give the same tokens.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import foretell as ft
from foretell.data import read_prompts
from foretell.results import write_result
from foretell.results.benchmarks import DropIn
from foretell.results.provenance import provenance


def measure(name: str, steps: int, new_tokens: int, patched: bool) -> DropIn:
    """One training run."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    torch.manual_seed(0)
    model = ft.MTPModel.from_pretrained(name, dtype=torch.float32)
    tokenizer = ft.load_tokenizer(name)
    prompts = read_prompts("stdlib:held-out", tokenizer, 48, 16, seed=0)
    with tempfile.TemporaryDirectory() as place:
        trainer = GRPOTrainer(
            model=model.lm,
            reward_funcs=lambda completions, **_: [float(len(text)) for text in completions],
            args=GRPOConfig(
                output_dir=place,
                per_device_train_batch_size=4,
                num_generations=4,
                max_completion_length=new_tokens,
                max_steps=steps,
                learning_rate=1e-6,
                report_to=[],
                save_strategy="no",
                use_cpu=True,
                bf16=False,
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": [tokenizer.decode(p[0]) for p in prompts]}),
            processing_class=tokenizer,
        )
        lm: Any = trainer.model
        if patched:
            ft.patch(lm, model)
        watch = Watch(lm)
        trainer.train()
        watch.stop()
    inputs = torch.cat(prompts[:4])
    greedy = {"max_new_tokens": 32, "do_sample": False, "eos_token_id": None}
    mine = lm.generate(inputs, **greedy)
    ft.unpatch(lm)
    return DropIn(
        method="patched" if patched else "transformers",
        forwards=watch.passes,
        tokens=watch.tokens,
        seconds=watch.seconds,
        identical=int((mine == lm.generate(inputs, **greedy)).all(dim=1).sum()),
        prompts=len(inputs),
    )


class Watch:
    """Counts what happens within a model's `generate`."""

    def __init__(self, lm: Any) -> None:
        self.passes, self.tokens, self.seconds, self.within = 0, 0, 0.0, False
        self.inner, self.before = lm.generate, vars(lm).get("generate")
        self.lm, self.hook = lm, lm.get_decoder().layers[0].register_forward_hook(self._count)
        vars(lm)["generate"] = self._generate

    def _count(self, *_: Any) -> None:
        self.passes += self.within

    def _generate(self, inputs: Any = None, *args: Any, **given: Any) -> Any:
        self.within, began = True, time.process_time()
        found = self.inner(inputs, *args, **given)
        self.within, self.seconds = False, self.seconds + time.process_time() - began
        prompts = given["input_ids"] if inputs is None else inputs
        self.tokens += found.numel() - prompts.numel()
        return found

    def stop(self) -> None:
        """Leave the model as it was."""
        self.hook.remove()
        del vars(self.lm)["generate"]
        if self.before is not None:
            vars(self.lm)["generate"] = self.before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="tiny-mtp")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("results/drop-in.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows = [
        measure(arguments.model, arguments.steps, arguments.new_tokens, patched)
        for patched in (False, True, False, True)
    ]
    for row in rows:
        print(row.flat())
    import trl

    settings = {**vars(arguments), "out": None, "trl": trl.__version__}
    write_result(arguments.out, "drop-in", settings, rows, provenance(0, "cpu", "float32"))


if __name__ == "__main__":
    main()
