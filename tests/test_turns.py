"""Several threads ask one model: each gets what it would get alone."""

import copy
from collections import Counter
from itertools import zip_longest
from threading import Thread

import pytest
import torch

import families
import foretell as ft
import rotating
from foretell.decoding import LookupDrafter, ModelDrafter, TreeShape, drafter_for


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
def test_threads_take_turns(kind: str) -> None:
    """Passes are watched by hooks on the model, which those of other threads set off too."""
    model = ft.attach(families.build("llama"), kind, depth=2)
    prompts = [families.prompt(1, 8 + n, seed=n) for n in range(4)]
    alone = [model.lm.generate(ids, max_new_tokens=16, do_sample=False) for ids in prompts]
    found: Counter[str] = Counter()

    def ask(number: int) -> None:
        for _ in range(4):
            try:
                out = model.generate(prompts[number], max_new_tokens=16, do_sample=False)
                found["same" if torch.equal(out, alone[number]) else "another"] += 1
            except Exception as error:  # in a thread, where nobody sees it
                found[repr(error)] += 1

    threads = [Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"same": 16}


def test_a_stream_that_waits_holds_nobody_up() -> None:
    """Not in its own thread either, and whether it is read to its end or given up."""
    model = ft.attach(families.build("llama"), "sequential", depth=2)
    ids, done = families.prompt(1, 8), []
    stream = model.stream(ids, max_new_tokens=16)
    next(stream)
    other = Thread(target=lambda: done.append(model.decode(ids, max_new_tokens=16)))
    other.start()
    other.join(60)
    assert done
    assert model.decode(ids, max_new_tokens=16).continuations == done[0].continuations
    stream.close()
    assert not any(module._forward_hooks for module in model.lm.modules())


@pytest.mark.parametrize("kind", ["parallel", "sequential"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_a_copy_does_not_follow_the_streams_of_its_original(family: str, kind: str) -> None:
    """Nor do these follow it."""
    lm = families.build("llama") if family == "llama" else rotating.build("phi3")
    model = ft.attach(lm, kind, depth=2)
    prompts = [families.prompt(1, length) for length in (rotating.SWITCH - 2, rotating.SWITCH + 6)]
    alone = [model.decode(ids, max_new_tokens=12, stop_tokens=()).continuations for ids in prompts]
    for ids, expected in zip(prompts, alone, strict=True):
        stream = model.stream(ids, max_new_tokens=12, stop_tokens=())
        tokens = list(next(stream)[0].tokens)
        other = copy.deepcopy(model)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in other.lm.modules())
        for again, found in zip(prompts, alone, strict=True):
            assert other.decode(again, max_new_tokens=12, stop_tokens=()).continuations == found
        tokens += [token for (step,) in stream for token in step.tokens]
        assert [tokens] == expected


@pytest.mark.parametrize("name", ["sequential", "parallel", "tree", "model", "lookup"])
def test_streams_may_share_a_drafter(name: str) -> None:
    """Whether they take turns, one is given up, or threads read them."""
    kind = name if name in ("sequential", "parallel") else "parallel"
    model = ft.attach(families.build("llama"), kind, depth=2)
    shape = TreeShape((2, 1)) if name == "tree" else None
    drafter = drafter_for(model.backbone, model.require_head(), shape=shape)
    if name == "model":
        draft = ft.MTPModel(families.moved(families.build("llama"), 0.1))
        drafter = ModelDrafter(model.backbone, draft.backbone)
    elif name == "lookup":
        drafter = LookupDrafter()
    prompts = [families.prompt(1, 8 + 3 * n, seed=n) for n in range(3)]
    told = {"max_new_tokens": 16, "stop_tokens": ()}
    expected = [model.decode(ids, **told, drafter="none").new_tokens for ids in prompts]
    found: list[list[int]] = [[] for _ in prompts]
    for steps in zip_longest(*(model.stream(ids, **told, drafter=drafter) for ids in prompts)):
        for tokens, step in zip(found, steps, strict=True):
            tokens += step[0].tokens if step else ()
    assert found == expected
    given_up = model.stream(prompts[0], **told, drafter=drafter)
    next(given_up)

    def ask(number: int) -> None:
        found[number] = model.decode(prompts[number], **told, drafter=drafter).new_tokens

    threads = [Thread(target=ask, args=(number,)) for number in range(3)]
    found = [[] for _ in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
