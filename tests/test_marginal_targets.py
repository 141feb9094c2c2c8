import torch

import families
import foretell as ft
from foretell.objective import ObjectiveConfig
from foretell.probe import marginalize
from foretell.targets import IGNORE
from foretell.training.marginals import marginal_targets

OBJECTIVE = ObjectiveConfig(distill="marginal", marginal_width=5, marginal_positions=4)


def test_targets_are_the_marginals_of_the_longest_document_alone() -> None:
    model = ft.attach(families.build("llama"), depth=2)
    tokens = families.prompt(2, 20)
    positions = torch.cat([torch.arange(6), torch.arange(14)]).expand(2, 20)
    targets = marginal_targets(model, tokens, positions, OBJECTIVE)
    assert sorted(targets) == [1, 2]
    for depth, target in targets.items():
        drawn = len(target.positions)
        assert drawn == target.size == 8 if depth == 1 else drawn == target.size <= 8
        assert target.probabilities.shape == (drawn, families.VOCAB)
        torch.testing.assert_close(target.probabilities.sum(-1), torch.ones(drawn))
        assert torch.equal(target.positions, target.positions.sort().values)
        assert (target.positions % 20 >= 6).all()
        for row in (0, 1):
            mine = target.positions // 20 == row
            where = target.positions[mine] - row * 20 - 6
            assert (where + 1 + depth < 14).all()  # there is something to predict
            expected = list(marginalize(model.backbone, tokens[row : row + 1, 6:], where, 2, 5))
            torch.testing.assert_close(target.probabilities[mine], expected[depth].probabilities)


def test_marginals_are_drawn_where_there_is_something_to_learn() -> None:
    """Answers behind prompts: the longest document has none, and the last row has none at all."""
    model = ft.attach(families.build("llama"), depth=2)
    tokens = families.prompt(3, 20)
    positions = torch.cat([torch.arange(6), torch.arange(14)]).expand(3, 20)
    labels = torch.full_like(tokens, IGNORE)
    labels[0, 4:6] = tokens[0, 4:6]
    labels[1, 17:] = tokens[1, 17:]
    targets = marginal_targets(model, tokens, positions, OBJECTIVE, passes=3, labels=labels)
    assert targets[1].positions.tolist() == [2, 3, *(20 + t for t in (15, 16, 17))]
    assert targets[2].positions.tolist() == [1, 2, *(20 + t for t in (14, 15, 16))]
    for target in targets.values():
        assert target.size == 3 * len(target.positions)
    nothing = marginal_targets(
        model, tokens[2:], positions[2:], OBJECTIVE, labels=labels[2:].contiguous()
    )
    assert [len(target.positions) for target in nothing.values()] == [0, 0]
    loss = model(tokens[2:], labels=labels[2:], objective=OBJECTIVE, marginals=nothing).loss
    assert loss.item() == 0.0


def test_heads_learn_the_marginals() -> None:
    """Every string is summed over, so the targets are exact, and heads can come close to them."""
    model = ft.attach(families.build("llama"), depth=1)
    model.freeze_backbone()
    tokens = families.prompt(2, 12)
    objective = ObjectiveConfig(
        distill="marginal", marginal_width=families.VOCAB, marginal_positions=12
    )
    marginals = marginal_targets(model, tokens, None, objective)
    optimizer = torch.optim.AdamW(model.head.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = model(tokens, objective=objective, marginals=marginals).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert 0 <= losses[-1] < 0.2 * losses[0]
