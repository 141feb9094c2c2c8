"""What SmolLM2-135M-Instruct answered on a GPU, kept in the repository without other people's text.

    python experiments/smollm2/answers.py unpack MODEL problems.jsonl tasks.jsonl code.jsonl \\
        --out runs/own.jsonl

6,528 continuations of at most 256 tokens, written in bfloat16 by `foretell distill` on an H100
(GSM8K's training problems, greedily and some at temperature 1; code and MBPP's tasks, greedily; the
model's own questions, half of them greedily and half at temperature 1). `answers.jsonl.xz` has
the answers, and of the prompts only those that the model wrote itself; the others are made anew by
`prompts.py` from the data sets, and found by a hash of their tokens. `unpack` joins both into a
file that `foretell train` takes.
"""

import argparse
import hashlib
import json
import lzma
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path

from foretell.checkpoints import load_tokenizer
from foretell.data import read_documents
from foretell.data.distill import prompts_of

ANSWERS = Path(__file__).with_name("answers.jsonl.xz")


def key(prompt: Sequence[int]) -> str:
    """What a prompt is found by."""
    return hashlib.sha256(json.dumps(list(prompt)).encode()).hexdigest()[:12]


def packed(lines: Iterable[str], others: Container[str]) -> Iterator[dict[str, object]]:
    """Distilled records; a key in place of the prompt where that is among `others`."""
    for line in lines:
        record = json.loads(line)
        count, tokens = record["prompt_tokens"], record["tokens"]
        prompt, answer = tokens[:count], tokens[count:]
        found = {"key": key(prompt)} if key(prompt) in others else {"prompt": prompt}
        yield {**found, "answer": answer}


def keys_of(model: str, paths: Sequence[Path]) -> dict[str, list[int]]:
    """The prompts in files of `prompts.py`, by their keys."""
    tokenizer = load_tokenizer(model)
    found = (
        prompt for path in paths for prompt in prompts_of(read_documents(path), tokenizer, 64, 256)
    )
    return {key(prompt): prompt for prompt in found}


def unpacked(prompts: dict[str, list[int]]) -> Iterator[dict[str, object]]:
    """The records as `foretell distill` wrote them, those whose prompt is not there left out."""
    with lzma.open(ANSWERS, "rt", encoding="utf-8") as lines:
        for record in map(json.loads, lines):
            prompt = record.get("prompt") or prompts.get(record["key"])
            if prompt is not None:
                yield {"tokens": [*prompt, *record["answer"]], "prompt_tokens": len(prompt)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("model", help="for its tokenizer")
    parser.add_argument(
        "prompts",
        type=Path,
        nargs="*",
        help="files that prompts.py wrote; without them, to unpack: what the model asked itself",
    )
    parser.add_argument("--distilled", type=Path, nargs="+", help="to pack: JSON lines in .xz")
    parser.add_argument("--out", type=Path, help="to unpack: the file to write")
    asked = parser.parse_args()
    prompts = keys_of(asked.model, asked.prompts)
    if asked.action == "unpack":
        records = list(unpacked(prompts))
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(json.dumps(record) + "\n" for record in records))
        print(f"{len(records)} conversations → {asked.out}")
        return
    with lzma.open(ANSWERS, "wt", encoding="utf-8", preset=9) as out:
        for path in asked.distilled:
            with lzma.open(path, "rt", encoding="utf-8") as lines:
                for record in packed(lines, prompts):
                    out.write(json.dumps(record, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
