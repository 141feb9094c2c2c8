"""Small training runs: a model, text that is easy to learn, and settings."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import foretell as ft
from foretell.checkpoints import load_tokenizer
from foretell.data import Document, PackedBlocks, StreamedBlocks
from foretell.heads import HeadConfig
from foretell.training import Progress, TrainConfig
from foretell.training.config import merged

VOCAB, SIZE = 48, 16
FINISHED = {
    "config.yaml", "source.json", "provenance.json", "metrics.jsonl", "model", "curves.png",
    "movement.json",
}  # fmt: skip
"""What a finished run's directory holds."""


def corpus(blocks: int = 24) -> PackedBlocks:
    """Counting up from somewhere, in documents of 24 tokens: easy to learn at every depth."""
    starts = np.arange(0, blocks * SIZE, 24)
    row = np.concatenate([(7 * start + np.arange(24)) % VOCAB for start in starts])
    tokens = row[: blocks * SIZE].reshape(blocks, SIZE).astype(np.int32)
    return PackedBlocks(tokens, starts, num_bytes=blocks * SIZE)


def masked_corpus():
    """Blocks with different numbers of targets: one document per block, most of them short."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 48, (24, SIZE)).astype(np.int32)
    lengths = rng.integers(3, SIZE + 1, 24).astype(np.int64)
    return PackedBlocks(blocks, np.arange(24) * SIZE, num_bytes=1000, lengths=lengths)


def stream():
    texts = [Document(f"x{n} = {n}\n" * 7, f"d{n}") for n in range(20)]
    return StreamedBlocks(lambda: texts, load_tokenizer("tiny"), SIZE, window=8, name="counting")


def small_model(
    head: str | dict | HeadConfig | None = "parallel", seed: int = 0, vocab: int = VOCAB
) -> ft.MTPModel:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    lm = LlamaForCausalLM(config)
    return ft.MTPModel(lm, head if head is None else settings(head=head).head)


def settings(**changes) -> TrainConfig:
    values = {
        "recipe": "pretrain",
        "head": {"kind": "parallel", "depth": 2},
        "steps": 20,
        "batch_size": 4,
        "block_size": SIZE,
        "learning_rate": 3e-3,
        "log_every": 5,
        "save_every": 0,
    }
    if isinstance(changes.get("head"), str) and changes["head"] != "none":
        changes["head"] = {"kind": changes["head"], "depth": 2}
    return TrainConfig.parse(merged(values, changes))


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class Stop(KeyboardInterrupt):
    pass


def stop_at(step: int):
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise Stop

    return report
