"""Checkpoints on disk, read with suspicion and written whole.

A directory from elsewhere may hold anything. Only JSON and safetensors are read here, neither of
which can run code; every file must lie inside the directory, and an index must say what is there.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from foretell.checkpoints import CONFIG_FILES, HEADS_FILE, open_tensors, read_object
from foretell.errors import CheckpointError, InputError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXTRA = "model-mtp.safetensors"
"""The shard that holds what is added to a checkpoint of several shards."""

CONTRACT = "foretell-contract.json"
BACKBONE = "backbone"
"""Where a backbone goes that is written beside its heads, for layouts of heads alone."""

ADAPTER = "adapter_config.json"
"""Where it is, transformers puts adapters into the model that lies beside it."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER = (
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "tekken.json",
)
"""Files of a tokenizer: those of one model go together."""

COMPANIONS = (*TOKENIZER, "generation_config.json", "*processor_config.json", "LICENSE*", "NOTICE*")
"""Files beside the weights that belong to a model: its tokenizer, and how it generates."""

SUPERSEDED = (
    *CONFIG_FILES, HEADS_FILE, CONFIG, "*.safetensors", "*.safetensors.index.json",
    *TOKENIZER, "additional_chat_templates", "generation_config.json",
)  # fmt: skip
"""What an earlier import or export may have left in a directory, and another one may not write."""

_TENSOR_NAME = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")


class Checkpoint:
    """A directory with a `config.json` and safetensors, in one file or in shards with an index.

    Args:
        directory: where it lies.

    Attributes:
        config: of the model, plain values.
        files: the name of the file that holds each tensor.
        stored: what a tensor is called in its file, where that is another name.

    Raises:
        CheckpointError: a file is missing, damaged, a pickle or outside the directory, a tensor
            has a name like a path, or it is not clear which weights are the model's.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: is not a directory.")
        self.config = self.read_json(CONFIG)
        if (directory / ADAPTER).exists():
            raise CheckpointError(
                f"{directory / ADAPTER}: says that adapters belong on the weights beside it; merge "
                "them into the weights first."
            )
        self.files = self._find_tensors()
        self.stored: dict[str, str] = {}
        for name, file in self.files.items():
            if not _TENSOR_NAME.fullmatch(name):
                raise CheckpointError(
                    f"{directory / file}: holds a tensor called {name!r}, which is not the name of "
                    "a tensor; get the checkpoint from its source."
                )

    def renamed(self, names: Mapping[str, str]) -> "Checkpoint":
        """The same checkpoint, some of its tensors under other names: what they are called, and
        what they shall be.
        """
        other = copy.copy(self)
        other.files = {names.get(name, name): file for name, file in self.files.items()}
        other.stored = {names.get(name, name): self.name_in_file(name) for name in self.files}
        return other

    def with_config(self, config: dict[str, Any]) -> "Checkpoint":
        """The same tensors with another config."""
        other = copy.copy(self)
        other.config = config
        return other

    def name_in_file(self, name: str) -> str:
        """What tensor `name` is called where it is stored."""
        return self.stored.get(name, name)

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the config."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, dict) else self.config

    @property
    def model_type(self) -> str:
        """The family, as the config names it."""
        return str(self.config.get("model_type", "none"))

    def path(self, name: str) -> Path:
        """A file of the directory, which must lie in it."""
        path = self.directory / name
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"{self.directory}: names {name}, outside of it; it is not read.")
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing; fetch it again.")
        return self.inside(path)

    def inside(self, path: Path) -> Path:
        """`path`, which must not be a link to somewhere else."""
        roots = [self.directory.resolve()]
        if self.directory.parent.name == "snapshots":  # the Hub's cache keeps files beside it
            roots.append((self.directory.parent.parent / "blobs").resolve())
        if not any(path.resolve().is_relative_to(root) for root in roots):
            raise CheckpointError(
                f"{path}: is a link out of the checkpoint, to {path.resolve()}; not followed."
            )
        return path

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON object."""
        return read_object(self.path(name))

    def tensors(self, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
        """The tensors whose names are wanted, as they are stored."""
        found: dict[str, Tensor] = {}
        names = sorted(filter(wanted, self.files), key=self.files.__getitem__)
        for file, held in groupby(names, self.files.__getitem__):
            with self.open(file) as handle:
                found |= {name: handle.get_tensor(self.name_in_file(name)) for name in held}
        return found

    def tensor(self, name: str) -> Tensor:
        """One tensor as it is stored."""
        if name not in self.files:
            raise CheckpointError(f"{self.directory}: has no tensor {name}.")
        with self.open(self.files[name]) as handle:
            return cast(Tensor, handle.get_tensor(self.name_in_file(name)))

    @contextmanager
    def open(self, file: str) -> Iterator[Any]:
        """A shard."""
        with open_tensors(self.path(file)) as handle:
            yield handle

    def _find_tensors(self) -> dict[str, str]:
        if (self.directory / INDEX).exists():
            files = self._read_index()
            if (self.directory / SINGLE).exists() and {*files.values()} != {SINGLE}:
                raise CheckpointError(
                    f"{self.directory / SINGLE}: lies beside {INDEX}, which names other files; "
                    "transformers would read the one and engines the other: remove one of them."
                )
            return files
        if not (self.directory / SINGLE).exists():
            pickles = sorted(p.name for p in self.directory.iterdir() if p.suffix in PICKLES)
            if pickles:
                raise CheckpointError(
                    f"{self.directory / pickles[0]}: is a pickle file, which can run code when it "
                    "is read, and is not read; convert it to safetensors."
                )
        return dict.fromkeys(self._names(SINGLE), SINGLE)

    def _read_index(self) -> dict[str, str]:
        found = self.read_json(INDEX).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise CheckpointError(f"{self.directory / INDEX}: has no weight_map of names to files.")
        files = cast(dict[str, str], found)
        for file in sorted(set(files.values())):
            if Path(file).suffix != ".safetensors":
                raise CheckpointError(
                    f"{self.directory / INDEX}: names {file!r}, which is not a safetensors file."
                )
            missing = {name for name, where in files.items() if where == file} - self._names(file)
            if missing:
                raise CheckpointError(
                    f"{self.directory / file}: lacks {min(missing)}, which {INDEX} says it holds."
                )
        return files

    def _names(self, file: str) -> set[str]:
        with self.open(file) as handle:
            return set(handle.keys())


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Say in one line that a directory cannot be written, or something beside it not be read."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: nothing is written there ({error}).") from None


def write_checkpoint(
    base: Checkpoint,
    out: Path,
    *,
    config: Mapping[str, Any] | None = None,
    replace: Mapping[str, Tensor] | None = None,
    drop: Callable[[str], bool] = lambda name: False,
) -> None:
    """Write `base` with some tensors replaced, added or dropped; all others keep their bytes.

    Args:
        base: what is copied: the weights, the config and what belongs to them.
        out: an existing directory.
        config: in place of its own.
        replace: tensors by name; no value of theirs is rounded, see `fitted`.
        drop: which of its tensors are left out.
    """
    replace = dict(replace or {})
    config = base.config if config is None else config
    copy_companions(base, out)
    if config == base.read_json(CONFIG):
        shutil.copyfile(base.path(CONFIG), out / CONFIG)
    else:
        (out / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shards = sorted(set(base.files.values()))
    added = {name: tensor for name, tensor in replace.items() if name not in base.files}
    home = SINGLE if SINGLE in shards else EXTRA  # of what is added
    files: dict[str, str] = {}
    for shard in shards:
        own = [name for name, file in base.files.items() if file == shard and not drop(name)]
        more = added if shard == home else {}
        _write_shard(base, out, shard, own, replace, more)
        files |= dict.fromkeys([*own, *more], shard)
    if added and home not in shards:
        save_tensors(added, out / home)
        files |= dict.fromkeys(added, home)
    if SINGLE not in shards:
        total = sum((out / file).stat().st_size for file in set(files.values()))
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        (out / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def save_tensors(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file; what shares memory is written out."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, path, metadata={**(metadata or {}), "format": "pt"})


def _write_shard(
    base: Checkpoint,
    out: Path,
    shard: str,
    own: list[str],
    replace: Mapping[str, Tensor],
    more: Mapping[str, Tensor],
) -> None:
    changed = [name for name in own if name in replace]
    renamed = any(base.name_in_file(name) != name for name in own)
    held = sum(file == shard for file in base.files.values())
    if not (changed or renamed or more) and len(own) == held:
        shutil.copyfile(base.path(shard), out / shard)
        return
    tensors = base.tensors(set(own).__contains__)
    for name in changed:
        tensors[name] = fitted(replace[name], tensors[name], name)
    if tensors or more:
        with base.open(shard) as handle:
            metadata = handle.metadata()
        save_tensors({**tensors, **more}, out / shard, metadata)


def fitted(tensor: Tensor, stored: Tensor, name: str) -> Tensor:
    """`tensor` in the place of `stored`: in that one's type where it loses nothing, or in its own.

    Raises:
        CheckpointError: their shapes differ.
    """
    if tensor.shape != stored.shape:
        raise CheckpointError(
            f"{name}: is {tuple(tensor.shape)} here and {tuple(stored.shape)} in the checkpoint."
        )
    tensor = tensor.detach().cpu()
    there = tensor.to(stored.dtype)
    return there if torch.equal(there.to(tensor.dtype), tensor) else tensor


def copy_companions(base: Checkpoint, out: Path) -> None:
    """Tokenizer and generation settings, in place of those that `out` has; never code."""
    if _companions(base.directory, TOKENIZER):
        for path in _companions(out, TOKENIZER):
            path.unlink()
    for path in _companions(base.directory, COMPANIONS):
        copied = out / path.relative_to(base.directory)
        copied.parent.mkdir(exist_ok=True)
        shutil.copyfile(base.inside(path), copied)


def _companions(directory: Path, patterns: Sequence[str]) -> list[Path]:
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.is_file()}
    return sorted(path for path in found if path.suffix not in (".py", ".safetensors", *PICKLES))


def require_plain(base: Checkpoint) -> None:
    """Refuse quantised weights, by what they are."""
    for config in (base.config, base.text_config):
        quantised = config.get("quantization_config")
        if quantised:
            how = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else "?"
            raise CheckpointError(
                f"{base.directory / CONFIG}: the weights are quantised ({how}); heads read and "
                "write weights as they are. Convert the checkpoint to bfloat16 first."
            )
    for file in sorted(set(base.files.values())):
        with base.open(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - not a mapping
                dtype = str(handle.get_slice(name).get_dtype())
                if dtype.startswith(("F8", "I8", "U8", "F4", "F6_")):
                    raise CheckpointError(
                        f"{base.directory / file}: {name} is stored as {dtype}, quantised; convert "
                        "the checkpoint to bfloat16 first."
                    )


def tensors_equal(one: Tensor, other: Tensor) -> bool:
    """The same bits."""
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
