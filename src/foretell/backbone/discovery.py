"""How the view learns a model's structure from one small pass, and proves what it learned.

Shapes: B batch, T time, D hidden, V vocabulary, L layers.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from foretell.backbone.calls import hidden_of
from foretell.errors import BackboneError

if TYPE_CHECKING:
    from foretell.backbone.view import Backbone


@dataclass(frozen=True)
class Scale:
    """Multiplies by `factor`, or divides by it: in half precision the two round differently."""

    factor: float = 1.0
    divides: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.factor == 1.0:
            return x
        return x / self.factor if self.divides else x * self.factor

    @classmethod
    def between(cls, raw: Tensor, scaled: Tensor, config: Any) -> "Scale | None":
        """The scale that turns `raw` into `scaled`, or None where no single factor does.

        A factor fitted to rounded numbers is a little off, so the numbers of the model's config
        (and their square roots, as Gemma scales) are tried for an exact match as well.
        """
        fitted = float((raw.double() * scaled.double()).sum() / raw.double().square().sum())
        numbers = [float(v) for v in vars(config).values() if type(v) in (int, float) and v > 0]
        rounded = [float(torch.tensor(v**0.5, dtype=raw.dtype)) for v in numbers]
        candidates = [
            cls(),
            *map(cls, numbers),
            *(cls(v, True) for v in numbers),
            *map(cls, rounded),
            cls(fitted),
        ]
        near = [
            c
            for c in candidates
            if abs((1 / c.factor if c.divides else c.factor) - fitted) < 0.02 * abs(fitted)
        ]
        if not near:  # all zero, or not numbers
            return None
        best = min(near, key=lambda scale: float((scale(raw) - scaled).abs().max()))
        roundings = (
            2 * torch.finfo(raw.dtype).eps
        )  # of one product: of each element, not of the largest
        fits = torch.allclose(best(raw).float(), scaled.float(), rtol=roundings, atol=0.0)
        return best if fits else None


class Discovery:
    """Learns the view's numbers from one traced pass, and proves the view on it."""

    def __init__(self, view: "Backbone") -> None:
        self.view = view

    def run(self) -> None:
        with evaluating(self.view.model):
            self._run(self._probe_tokens(self.view))

    @staticmethod
    def _probe_tokens(view: "Backbone") -> Tensor:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, view.vocab_size, (2, 6), generator=generator)
        return tokens.to(view.device)

    def _run(self, tokens: Tensor) -> None:
        view = self.view
        seen: list[tuple[nn.Module, Any, Tensor]] = []

        def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                seen.append((module, args[0] if args else None, output))

        outside = [module for module in view.decoder.children() if module is not view.blocks]
        handles = [m.register_forward_hook(note) for m in {*outside, view.embedding, view.output}]
        try:
            with view.watch((0, view.num_layers - 1)) as trace:
                logits = self._logits(tokens)
        finally:
            for handle in handles:
                handle.remove()
        if not bool(torch.isfinite(logits).all()):
            raise BackboneError(
                f"the logits of {name_of(view.model)} are not finite; check its weights and type."
            )
        if trace.call is None or trace.last_output is None or 0 not in trace.block_inputs:
            raise self._refuse("a forward pass does not go through its list of decoder blocks")
        output_calls = [(given, raw) for module, given, raw in seen if module is view.output]
        if not output_calls:
            raise self._refuse("a forward pass does not call its output embedding")
        final, raw = output_calls[-1]
        bare = isinstance(trace.last_output, Tensor)
        view.answers = 0 if bare else len(trace.last_output)
        view._norm_name = self._final_norm(seen, hidden_of(trace.last_output), final)
        self._learn_embedding(tokens, trace.block_inputs[0])
        self._learn_logits(raw, logits)
        self._prove(tokens, logits)

    def _logits(self, tokens: Tensor) -> Tensor:
        """What the model says of them; its own code may raise anything."""
        try:
            return cast(Tensor, self.view.model(input_ids=tokens, use_cache=False).logits)
        except Exception as error:
            raise self._refuse(f"a forward pass raises {told(error)}") from error

    def _final_norm(self, seen: Sequence[Any], last_output: Tensor, final: Tensor) -> str | None:
        """Its name in the decoder; None where there is none."""
        names = {module: name for name, module in self.view.decoder.named_children()}
        for module, given, output in seen:
            if given is last_output and module in names and same(output, final):
                return names[module]
        if same(last_output, final):
            return None
        raise self._refuse(
            "something else than one norm lies between the last block and the output head"
        )

    def _learn_embedding(self, tokens: Tensor, entering: Tensor) -> None:
        """The first block reads scale * embedding, plus positions that no token changes."""
        view = self.view
        raw = cast(Tensor, view.embedding(tokens))
        if raw.shape != entering.shape:
            raise self._refuse("the embedding is not as wide as the blocks")
        if (scale := Scale.between(raw, entering, view.config)) is not None:
            view.embed_scale = scale
            return
        flipped = tokens.flip(0)
        positions = entering - raw
        with view.watch((0,)) as trace:
            view.model(input_ids=flipped, use_cache=False)
        if not same(cast(Tensor, view.embedding(flipped)) + positions, trace.block_inputs[0]):
            raise self._refuse(
                "what enters its first block is not the scaled embedding plus positions"
            )

    def _learn_logits(self, raw: Tensor, logits: Tensor) -> None:
        view = self.view
        # Caps first: small logits pass them almost unbent, and would look like no cap at all.
        for cap in _caps(view.config):
            if same(torch.tanh(raw / cap) * cap, logits):
                view.softcap = cap
                return
        if (scale := Scale.between(raw, logits, view.config)) is not None:
            view.logit_scale = scale
            return
        raise self._refuse(
            "its logits are neither scaled nor soft-capped outputs of its output embedding"
        )

    def _prove(self, tokens: Tensor, logits: Tensor) -> None:
        view = self.view
        layer = view.num_layers - 1
        output = view(tokens, layers=(layer,))
        if not same(view.unembed(output.final), logits):
            raise self._refuse("the view does not reproduce the model's own logits")
        last = output.call(view.blocks[-1], output.states[layer])
        if not same(view.unembed(view.final_norm(last)), logits):
            raise self._refuse("its last block cannot be run apart from the model")

    def _refuse(self, property_: str) -> BackboneError:
        return BackboneError(f"{name_of(self.view.model)} cannot carry heads: {property_}.")


def _caps(config: Any) -> list[float]:
    """What a config says of soft caps on logits; those of attention and routers are others."""
    others = ("att", "router", "gate")
    return [
        float(value)
        for name, value in vars(config).items()
        if "cap" in name and not any(other in name for other in others)
        if type(value) in (int, float) and value > 0
    ]


def find_blocks(model: PreTrainedModel) -> tuple[str, str, int]:
    """The path of the module that holds the decoder blocks, their list's name in it, and L."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for path, holder in model.named_modules():
        for name, child in holder.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return path, name, len(child)
    raise BackboneError(
        f"{name_of(model)} cannot carry heads: it has no list of {count} decoder blocks "
        "(num_hidden_layers of its config)."
    )


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients for a moment."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


@contextmanager
def generating(model: Any, config: GenerationConfig) -> Iterator[None]:
    """With `config` in place of the model's own, from which `generate` would take what is unset."""
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


def required(module: nn.Module | None, model: PreTrainedModel, what: str) -> Any:
    """`module`, if it is one with a weight."""
    if module is None or not isinstance(getattr(module, "weight", None), Tensor):
        raise BackboneError(f"{name_of(model)} cannot carry heads: it has no {what} with a weight.")
    return module


def same(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of a differently ordered sum in the tensors' type."""
    if a.shape != b.shape:
        return False
    tolerance = min(32 * torch.finfo(b.dtype).eps, 2 * torch.finfo(torch.bfloat16).eps)
    scale = float(b.abs().max())
    return bool(torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance * scale))


def near(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of another way to compute the same, which adds up over layers.

    In float32 what is wrong is far from it; in half precision small differences pass. In double
    precision too models compute some things in float32.
    """
    eps = max(torch.finfo(dtype).eps for dtype in (b.dtype, torch.float32))
    return bool((a - b).norm() <= eps**0.5 * b.norm())


def told(error: Exception) -> str:
    """What somebody else's code raised, in one line."""
    return f"{type(error).__name__} ({' '.join(str(error).split()) or 'no message'})"


def name_of(model: PreTrainedModel) -> str:
    """The model's class, as errors name it."""
    return type(model).__name__
