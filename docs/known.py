"""What the help of the commands says of the library, written to `src/foretell/cli/known.json`.

Help comes at once, without the libraries, and so cannot ask them. What can be set, its default and
what it means stand with the fields of the configs; heads, layouts and rules are known by name.
"""

import json
from pathlib import Path
from typing import Any

from foretell.config import BaseConfig
from foretell.decoding import RULES, DecodeOptions
from foretell.decoding.drafters.base import DRAFT_LENGTH
from foretell.formats import LAYOUTS
from foretell.heads import HEADS, HeadConfig
from foretell.serve import Limits
from foretell.training import TrainConfig

FILE = Path(__file__).parents[1] / "src" / "foretell" / "cli" / "known.json"


def found() -> dict[str, Any]:
    """What the file should hold."""
    train: dict[str, Any] = {}
    for name, setting in described(TrainConfig).items():
        train |= heads() if name == "head" else {name: setting}
    usual = type(DecodeOptions().rule)
    return {
        "train": train,
        "serve": described(Limits),
        "draft_length": DRAFT_LENGTH,
        "layouts": list(LAYOUTS),
        "rule": next(name for name, rule in RULES.items() if rule is usual),
        "lossless": [name for name, rule in RULES.items() if rule.lossless],
        "lossy": {name: rule.number for name, rule in RULES.items() if not rule.lossless},
    }


def described(kind: type[BaseConfig]) -> dict[str, dict[str, Any]]:
    """By field: its default, and the first paragraph of what it means."""
    told: dict[str, dict[str, Any]] = {}
    for name, field in kind.model_fields.items():
        if isinstance(field.default, BaseConfig) and name != "head":
            inner = described(type(field.default))
            told |= {f"{name}.{key}": setting for key, setting in inner.items()}
        else:
            default = None if field.is_required() or field.default_factory else field.default
            meaning = " ".join((field.description or "").partition("\n\n")[0].split())
            told[name] = {"default": default, "help": meaning}
    return told


def heads() -> dict[str, dict[str, Any]]:
    """The same of what heads can be told: all of them, then each kind."""
    usual = TrainConfig.model_fields["head"].default
    kinds = {kind: described(head.Config) for kind, head in HEADS.items()}
    names = f"{', '.join(f'`{kind}`' for kind in kinds)}, or `none` (recipe `pretrain` only)."
    told = {"head.kind": {"default": usual.kind, "help": names}}
    for name, setting in described(HeadConfig).items():
        if any(kind[name]["default"] != setting["default"] for kind in kinds.values()):
            setting["default"] = "as the kind of head has it"
        told[f"head.{name}"] = setting
    told["head.depth"]["default"] = usual.depth
    for kind, settings in kinds.items():
        for name, setting in settings.items():
            if name not in HeadConfig.model_fields:
                setting["help"] = f"({kind} heads) {setting['help']}"
                told[f"head.{name}"] = setting
    return told


def write() -> None:
    text = json.dumps(found(), indent=2, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")
