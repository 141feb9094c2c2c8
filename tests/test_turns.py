"""Several threads ask one model: each gets what it would get alone."""

from collections import Counter
from threading import Thread

import pytest
import torch

import families
import foretell as ft


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
