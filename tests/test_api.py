from pathlib import Path

import torch

import families
import foretell as ft


def test_the_public_names_are_there() -> None:
    assert {
        "BackboneError", "CheckpointError", "ForetellError", "HeadError", "InputError", "MTPModel",
        "ParallelHeads", "ResidualHeads", "SequentialHeads", "attach",
        "load_tokenizer", "patch", "unpatch",
    } == set(ft.__all__)  # fmt: skip
    for name in ft.__all__:
        assert getattr(ft, name).__module__.startswith("foretell.")
    assert ft.__version__


def test_errors_are_one_family() -> None:
    for error in (ft.InputError, ft.BackboneError, ft.HeadError, ft.CheckpointError):
        assert issubclass(error, ft.ForetellError)
        assert error.__module__ == "foretell.errors"
    assert issubclass(ft.InputError, ValueError)


def test_the_design_page_works_as_written(tmp_path: Path) -> None:
    hf_model = families.build("llama")
    input_ids = families.prompt()
    mask = torch.ones_like(input_ids)
    plain = hf_model.generate(input_ids, attention_mask=mask, max_new_tokens=10, do_sample=False)

    model = ft.attach(hf_model, head="parallel", depth=3)
    assert model.head.config == ft.ParallelHeads.Config(depth=3)
    other = ft.attach(hf_model, head=ft.SequentialHeads.Config(depth=2, shared=True))
    assert (model.depth, other.depth) == (3, 2)

    for attached in (model, other):
        result = attached.decode(input_ids, attention_mask=mask, max_new_tokens=10)
        assert torch.equal(result.sequences, plain)
        assert result.tokens_per_forward == 10 / len(result.steps)
        assert result.steps[0][0].drafted == 0
        assert all(0 <= step.accepted <= step.drafted for step in result.row_steps)
        assert sum(len(step.tokens) for step in result.row_steps) == 10

        attached.save_pretrained(tmp_path / "model")
        again = ft.MTPModel.from_pretrained(tmp_path / "model")
        assert torch.equal(again.decode(input_ids, max_new_tokens=10).sequences, plain)
        assert again.depth == attached.depth

    hf_model.save_pretrained(tmp_path / "plain")
    without = ft.MTPModel.from_pretrained(tmp_path / "plain")
    assert without.head is None
    result = without.decode(input_ids, max_new_tokens=10)
    assert torch.equal(result.sequences, plain)
    assert result.tokens_per_forward == 1
