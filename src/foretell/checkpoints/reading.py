"""Reading files with suspicion: what is missing, cut off or only stands for a file is named."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from foretell.errors import CheckpointError

GGUF = (
    "is a GGUF file, which llama.cpp reads; give the checkpoint that it was made from, in "
    "safetensors."
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, or `CheckpointError`."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A safetensors file, whole, or `CheckpointError`."""
    require_itself(path)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: is not a whole safetensors file ({error}); fetch it again."
        ) from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file, or `CheckpointError`."""
    require_itself(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error}); fetch it again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: is not a JSON object; fetch it again.")
    return value


def require_itself(path: Path) -> None:
    """Refuse a file that is missing or empty, or that another one only stands for."""
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing; save the model again or fetch the file.")
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    if not head:
        raise CheckpointError(f"{path}: is not a whole file, it is empty; fetch it again.")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path}: is a pointer of git-lfs and not the file itself; run `git lfs pull` there."
        )
    if head.startswith(b"GGUF"):
        raise CheckpointError(f"{path}: {GGUF}")
