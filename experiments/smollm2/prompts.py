"""Prompts for SmolLM2-135M-Instruct to answer, from which its heads then learn.

    python experiments/smollm2/prompts.py problems gsm8k_train.jsonl --out problems.jsonl
    python experiments/smollm2/prompts.py tasks mbpp.jsonl --out tasks.jsonl
    python experiments/smollm2/prompts.py functions sympy_py.jsonl --count 2000 --out code.jsonl
    python experiments/smollm2/prompts.py questions MODEL --count 4000 --out questions.jsonl

Every line of a result is a prompt that `foretell distill` takes: a conversation of one turn, or for
half of the functions the beginning of a file as it stands, as in HumanEval. `questions` come from
the model itself: after the template's opening of a user's turn it writes what a user would ask
(Magpie, Xu et al. 2024, arXiv 2406.08464).
"""

import argparse
import ast
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LONGEST = 1200
"""Characters of a function's head and docstring; longer ones are left out."""


def conversation(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        yield from map(json.loads, lines)


def problems(path: Path) -> Iterator[dict[str, Any]]:
    """GSM8K's questions."""
    return (conversation(record["question"]) for record in records(path))


def tasks(path: Path) -> Iterator[dict[str, Any]]:
    """MBPP's descriptions of functions."""
    return (conversation(record["text"]) for record in records(path))


def functions(path: Path) -> Iterator[dict[str, Any]]:
    """Heads and docstrings of functions in Python files; every second one as a conversation."""
    number = 0
    for record in records(path):
        try:
            tree = ast.parse(record["text"])
        except SyntaxError:
            continue
        lines = record["text"].splitlines()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
                code = "\n".join(lines[node.lineno - 1 : node.body[0].end_lineno]) + "\n"
                if len(code) > LONGEST:
                    continue
                number += 1
                if number % 2:
                    yield {"prompt": code}
                else:
                    yield conversation(f"Complete this Python function:\n\n```python\n{code}```")


@torch.inference_mode()
def questions(path: Path, count: int, seed: int, device: str) -> Iterator[dict[str, Any]]:
    """What the model takes for a user's question, each once, drawn at temperature 1."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).to(device)
    empty = tokenizer.apply_chat_template([{"role": "user", "content": "\0"}], tokenize=False)
    opening = tokenizer(empty.split("\0")[0], add_special_tokens=False, return_tensors="pt")
    torch.manual_seed(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        drawn = model.generate(
            **opening.to(device),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=0.95,
            max_new_tokens=96,
            num_return_sequences=min(1024, count),
        )
        for row in drawn[:, opening.input_ids.shape[1] :].tolist():
            text = tokenizer.decode(row, skip_special_tokens=True).strip()
            if model.generation_config.eos_token_id in row and text:
                found[text] = None
    return map(conversation, list(found)[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("kind", choices=("problems", "tasks", "functions", "questions"))
    parser.add_argument("source", type=Path, help="a file of the data set, or a model's directory")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, help="this many, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="for questions")
    asked = parser.parse_args()
    if asked.kind == "questions":
        found = list(questions(asked.source, asked.count or 1000, asked.seed, asked.device))
    else:
        make = {"problems": problems, "tasks": tasks, "functions": functions}[asked.kind]
        found = list(make(asked.source))
        random.Random(asked.seed).shuffle(found)
        found = found[: asked.count]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text("".join(json.dumps(record) + "\n" for record in found), encoding="utf-8")
    print(f"{len(found)} prompts → {asked.out}")


if __name__ == "__main__":
    main()
