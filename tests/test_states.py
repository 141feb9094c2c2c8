import errno
import os
from pathlib import Path

import pytest
import torch

import families
import foretell as ft
from foretell.backbone.calls import hidden_of
from foretell.errors import InputError
from foretell.training.states import StateCache

POSITIONS = torch.cat([torch.arange(5), torch.arange(11)])
BLOCK = 16 * families.HIDDEN * 4 * 2  # bytes: two states, float32


def frozen(family: str, **head) -> ft.MTPModel:
    model = ft.attach(families.build(family), depth=2, **head)
    model.freeze_backbone()
    return model


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2", "mixtral"])
@pytest.mark.parametrize("head", [{"head": "parallel"}, {"head": "sequential", "tap": "weighted"}])
def test_stored_states_teach_what_computed_ones_do(tmp_path: Path, family: str, head: dict) -> None:
    model = frozen(family, **head)
    tokens = families.prompt(6, 16)
    positions = POSITIONS.expand(6, 16)
    cache = StateCache(tmp_path / "states", model, 6, 16, limit=1 << 30)
    passes = []
    handle = model.backbone.blocks[0].register_forward_hook(
        lambda *seen: passes.append(len(hidden_of(seen[-1])))
    )
    for index, computed in (([0, 3], 2), ([3, 1], 1), ([1, 0], 0)):
        rows = torch.tensor(index)
        expected = model(tokens[rows], positions[rows])
        passes.clear()
        trunk = cache.read(rows, tokens[rows], positions[rows])
        assert sum(passes) == computed
        found = model(tokens[rows], positions[rows], trunk=trunk)
        torch.testing.assert_close(found.depth_losses, expected.depth_losses)
        parameters = list(model.head.parameters())
        ours = torch.autograd.grad(found.loss, parameters)
        theirs = torch.autograd.grad(expected.loss, parameters)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    handle.remove()


def test_the_file_stays_within_its_limit_and_other_rows_are_computed(tmp_path: Path) -> None:
    model = frozen("llama")
    tokens, positions = families.prompt(4, 16), torch.arange(16).expand(4, 16)
    path = tmp_path / "deeper" / "states"
    cache = StateCache(path, model, 4, 16, limit=2 * BLOCK + 100)
    assert path.stat().st_size == 2 * BLOCK
    every = torch.arange(4)
    for _ in range(2):
        trunk = cache.read(every, tokens, positions)
        torch.testing.assert_close(trunk.final, model.backbone(tokens).final)
    assert cache.known.tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="holds no block"):
        StateCache(path, model, 4, 16, limit=100)


def test_a_full_disk_is_known_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = frozen("llama"), tmp_path / "states"
    StateCache(path, model, 4, 16, limit=1 << 30)
    assert path.stat().st_blocks * 512 >= path.stat().st_size == 4 * BLOCK  # no holes

    def fail(number: int) -> None:
        def fallocate(*_) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "posix_fallocate", fallocate)

    fail(errno.ENOSPC)
    with pytest.raises(InputError, match=r"cannot be made there .*No space left") as caught:
        StateCache(path, model, 4, 16, limit=1 << 30)
    assert "\n" not in str(caught.value)
    assert not path.exists()
    fail(errno.EOPNOTSUPP)  # a file system that cannot reserve
    StateCache(path, model, 4, 16, limit=1 << 30)


def test_states_keep_the_type_that_the_backbone_computes_them_in(tmp_path: Path) -> None:
    """Here a norm that is more exact than the other weights, as some checkpoints have it."""
    model = frozen("llama")
    model.bfloat16()
    model.backbone.final_norm.float()
    tokens, positions = families.prompt(2, 16), torch.arange(16).expand(2, 16)
    cache = StateCache(tmp_path / "states", model, 2, 16, limit=1 << 30)
    for _ in range(2):
        trunk = cache.read(torch.arange(2), tokens, positions)
        assert torch.equal(trunk.final, model.backbone(tokens).final)
