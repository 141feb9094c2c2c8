"""Train the bundled models `tiny` and `tiny-mtp` on Python's standard library.

    python experiments/tiny/tokenizer.py --out runs/tokenizer
    python experiments/tiny/train.py tiny     --tokenizer runs/tokenizer --out runs/tiny
    python experiments/tiny/train.py tiny-mtp --tokenizer runs/tokenizer --out runs/tiny-mtp
    python experiments/tiny/train.py draft    --tokenizer runs/tokenizer --out runs/draft

The bundled ones have the same backbone, see the same blocks in the same order for the same number
of steps; `tiny-mtp` also learns to predict three tokens further. `draft` is a draft model for both,
two blocks deep, which `benchmarks/decode.py --draft-model` compares them with. A run that was
stopped goes on from its last checkpoint when it is started again.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from foretell import MTPModel
from foretell.data import PackedBlocks
from foretell.data.stdlib import standard_library
from foretell.training import Progress, TrainConfig, train

HERE = Path(__file__).parent


BLOCKS = {"tiny": 20, "tiny-mtp": 20, "draft": 2}


def backbone_config(vocab_size: int, blocks: int) -> LlamaConfig:
    """The shape of the backbones: deep and narrow, so that three more blocks cost little."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )


def show(progress: Progress) -> None:
    losses = " ".join(f"{loss:.3f}" for loss in progress.depth_losses)
    print(
        f"step {progress.step}/{progress.total_steps}  loss by depth {losses}  "
        f"lr {progress.learning_rate:.5f}  {progress.tokens_per_second:.0f} tokens/s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=tuple(BLOCKS))
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = TrainConfig.from_yaml(HERE / f"{arguments.name}.yaml")
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    blocks = PackedBlocks.from_documents(standard_library("train"), tokenizer, config.block_size)
    torch.manual_seed(config.seed)
    shape = backbone_config(len(tokenizer), BLOCKS[arguments.name])
    backbone = LlamaForCausalLM(shape).to(arguments.device)
    model = MTPModel(backbone, config.head)
    print(
        f"{len(blocks)} blocks, {sum(p.numel() for p in model.parameters())} parameters", flush=True
    )
    result = train(model, blocks, config, arguments.out, tokenizer=tokenizer, report=show)
    print(
        f"{result.steps} steps, {result.tokens} tokens, {result.seconds:.0f} s → {result.directory}"
    )


if __name__ == "__main__":
    main()
