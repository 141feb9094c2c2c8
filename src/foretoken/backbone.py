"""The view on a causal language model: embed, run, tap, unembed, and a fresh decoder block.

The model stays what it is, an ordinary `PreTrainedModel`. The view knows no family by name. It
watches one small forward pass, learns from it where the parts lie and how they are scaled, and then
proves on the same pass that it reproduces the model's own logits. What does not fit is refused with
the property that is missing.

A head's block is called *exactly as the model calls its own last block*: the view records the
arguments of that call (attention mask, rotary embedding, positions, whatever the family passes) and
hands them on with the hidden state and the cache exchanged. That is why no mask or rotary code is
written here, and why packed documents, sliding windows and padding mean for the heads what they
mean for the backbone.

Shapes: B batch, T time, D hidden, V vocabulary, L layers.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from foretoken.errors import BackboneError

BlockInit = Literal["fresh", "copy"]
"""Weights of a new block: the model's own random initialisation, or a copy of its last block."""


@dataclass(frozen=True)
class BlockCall:
    """How the model called its last block, ready to be repeated with another block beside it."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor, cache: Cache | None = None) -> Tensor:
        """Run `block` on `hidden` (B, T, D) → (B, T, D) with the recorded mask and positions.

        `cache` takes the place of the backbone's. It must have as many tokens as the backbone's
        cache had at the recorded call, or the recorded mask would not fit.
        """

        def swap(value: Any) -> Any:
            return cache if isinstance(value, Cache) else value

        kwargs = {name: swap(value) for name, value in self.kwargs.items()}
        return _hidden(block(hidden, *map(swap, self.args), **kwargs))


@dataclass(frozen=True)
class BackboneOutput:
    """One pass of the backbone.

    Attributes:
        final: (B, T, D) after the final norm: what the output head reads.
        states: (B, T, D) each; `states[l]` is the residual stream entering block `l`, and
            `states[L]` leaves the last block (before the final norm). Only the layers asked for.
        call: how the last block was called.
    """

    final: Tensor
    states: dict[int, Tensor]
    call: BlockCall


@dataclass
class _Trace:
    """What hooks saw in one forward pass."""

    block_inputs: dict[int, Tensor] = field(default_factory=dict)
    last_output: Any = None
    call: BlockCall | None = None


class Backbone:
    """The view. Building it runs the model once, on a few random tokens, to learn and to check.

    Args:
        model: any `AutoModelForCausalLM`; it is not modified.

    Raises:
        BackboneError: the model lacks a property that heads need; the message says which.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise BackboneError(
                f"{_name(model)} is an encoder-decoder; a decoder-only causal LM is needed."
            )
        self.model = model
        self.decoder, self._blocks_name, self.blocks = _find_blocks(model)
        self.embedding = _required(model.get_input_embeddings(), model, "input embedding")
        self.output = _required(model.get_output_embeddings(), model, "output embedding")
        self.embed_scale, self.logit_scale = Scale(), Scale()
        self.softcap: float | None = None
        self.final_norm: nn.Module = nn.Identity()
        self.blocks_return_tuples = False
        _Discovery(self).run()

    # -- what it is -----------------------------------------------------------------------------

    @property
    def config(self) -> Any:
        """The text part of the model's config."""
        return self.model.config.get_text_config()

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.blocks)

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """V, the number of logits."""
        return int(self.output.weight.shape[0])

    @property
    def max_length(self) -> int | None:
        """The longest context the model was built for, in tokens; None where it names none."""
        for name in ("max_position_embeddings", "n_positions"):
            if (value := getattr(self.config, name, None)) is not None:
                return int(value)
        return None

    @property
    def device(self) -> torch.device:
        """Where the model's input goes."""
        return cast(torch.device, self.embedding.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return cast(torch.dtype, self.output.weight.dtype)

    @cached_property
    def isolates_documents(self) -> bool:
        """Whether packed documents are kept apart by position ids that restart.

        Some families build their mask without looking at the positions, and a recurrent state knows
        no documents. Tried out, not looked up: does a second document's output change with the
        first?
        """
        tokens = torch.arange(16, device=self.device).remainder(self.vocab_size).reshape(2, 8)
        tokens[1, 4:] = tokens[0, 4:]
        positions = torch.arange(8, device=self.device).remainder(4).expand(2, 8)
        with _evaluating(self.model):
            final = self(tokens, position_ids=positions).final[:, 4:]
        return _same(final[0], final[1])

    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.model)

    # -- what it does ---------------------------------------------------------------------------

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings with the family's own scaling, without positions: (B, T) → (B, T, D)."""
        return self.embed_scale(cast(Tensor, self.embedding(tokens)))

    def unembed(self, final: Tensor) -> Tensor:
        """Logits with the family's own scaling and soft-capping: (..., D) → (..., V)."""
        logits = self.logit_scale(cast(Tensor, self.output(final.to(self.dtype))))
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def __call__(
        self,
        tokens: Tensor,
        *,
        layers: Iterable[int] = (),
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> BackboneOutput:
        """Run the model up to its output head.

        Args:
            tokens: (B, T) token ids.
            layers: which residual states to keep, 0…L.
            attention_mask: (B, S) ones and zeros over cache and tokens; None where nothing is
                padded.
            position_ids: (B, T); restarting at 0 inside a row where documents are packed.
            cache: appended to in place; None for a pass that keeps nothing.
        """
        given = {
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "past_key_values": cache,
        }
        with self._watch(layers) as trace:
            output = self.decoder(
                input_ids=tokens,
                use_cache=cache is not None,
                **{name: value for name, value in given.items() if value is not None},
            )
        states = dict(trace.block_inputs)
        if self.num_layers in layers:
            states[self.num_layers] = _hidden(trace.last_output)
        return BackboneOutput(output[0], states, cast(BlockCall, trace.call))

    def block_call(self, hidden: Tensor, position_ids: Tensor, cache: Cache | None) -> BlockCall:
        """How the model would call its last block on `hidden` (B, T, D) behind `cache`.

        The decoder's own code prepares the arguments: it runs with every block replaced by a
        stand-in that does nothing, so that this costs a mask and a rotary embedding and no layer.
        """
        rehearsal, recorder = self._rehearsal
        recorder.forget()
        rehearsal(
            inputs_embeds=hidden,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        if recorder.call is None:
            raise BackboneError(
                f"{_name(self.model)} cannot draft in sequence: its decoder does not go through "
                "its list of blocks."
            )
        return recorder.call

    @cached_property
    def _rehearsal(self) -> tuple[nn.Module, "_Recorder"]:
        """The decoder with stand-ins for blocks, sharing every other module with the real one."""
        rehearsal = copy.copy(self.decoder)
        for hooked in ("forward", "_hf_hook"):  # accelerate's, bound to the decoder itself
            rehearsal.__dict__.pop(hooked, None)
        recorder = _Recorder(self.blocks_return_tuples)
        rehearsal._modules = dict(self.decoder._modules)
        stand_ins = [_StandIn(block, recorder) for block in self.blocks]
        rehearsal._modules[self._blocks_name] = nn.ModuleList(stand_ins)
        return rehearsal, recorder

    def new_block(self, init: BlockInit = "fresh") -> nn.Module:
        """A trainable block like the model's last one, which writes to layer 0 of its cache."""
        config = self.model.config
        shared = {id(value): value for value in (config, self.config)}
        block = copy.deepcopy(self.blocks[-1], memo=shared)
        for module in block.modules():
            if hasattr(module, "layer_idx"):
                setattr(module, "layer_idx", 0)  # noqa: B010 - typed as a submodule otherwise
        if init == "fresh":
            self._initialise(block)
        return block.requires_grad_(True)

    def new_norm(self) -> nn.Module:
        """A trainable copy of the final norm."""
        return copy.deepcopy(self.final_norm).requires_grad_(True)

    def _initialise(self, block: nn.Module) -> None:
        for part in (*block.parameters(), *block.buffers(), *block.modules()):
            part.__dict__.pop("_is_hf_initialized", None)  # or transformers leaves it as it is
        with torch.no_grad():
            block.apply(
                self.model._init_weights
            )  # children first, as transformers does: parents may correct

    @contextmanager
    def _watch(self, layers: Iterable[int]) -> Iterator[_Trace]:
        trace = _Trace()
        last = self.blocks[-1]

        def see_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            _, trace.call = _split_call(args, kwargs)

        def see_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            trace.last_output = output

        def see_input(layer: int) -> Any:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                trace.block_inputs[layer] = _split_call(args, kwargs)[0]

            return hook

        handles = [
            last.register_forward_pre_hook(see_call, with_kwargs=True),
            last.register_forward_hook(see_output),
        ]
        handles += [
            self.blocks[layer].register_forward_pre_hook(see_input(layer), with_kwargs=True)
            for layer in layers
            if layer < self.num_layers
        ]
        try:
            yield trace
        finally:
            for handle in handles:
                handle.remove()


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


@dataclass
class _Recorder:
    """Keeps the last call that a stand-in received, and knows how the family's blocks answer."""

    returns_tuples: bool
    call: BlockCall | None = None

    def forget(self) -> None:
        self.call = None


class _StandIn(nn.Module):
    """Takes a block's place in a rehearsal: same attributes, no work."""

    def __init__(self, block: nn.Module, recorder: _Recorder) -> None:
        super().__init__()
        self.__dict__["_block"] = block
        self.__dict__["_recorder"] = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_block"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden, self._recorder.call = _split_call(args, kwargs)
        return (hidden,) if self._recorder.returns_tuples else hidden


class _Discovery:
    """Learns the view's numbers from one traced pass, and proves the view on it."""

    def __init__(self, view: Backbone) -> None:
        self.view = view

    def run(self) -> None:
        with _evaluating(self.view.model):
            self._run(self._probe_tokens(self.view))

    @staticmethod
    def _probe_tokens(view: Backbone) -> Tensor:
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
            with view._watch((0, view.num_layers - 1)) as trace:
                logits = cast(Tensor, view.model(input_ids=tokens, use_cache=False).logits)
        finally:
            for handle in handles:
                handle.remove()
        if trace.call is None or trace.last_output is None or 0 not in trace.block_inputs:
            raise self._refuse("a forward pass does not go through its list of decoder blocks")
        output_calls = [(given, raw) for module, given, raw in seen if module is view.output]
        if not output_calls:
            raise self._refuse("a forward pass does not call its output embedding")
        final, raw = output_calls[-1]
        view.blocks_return_tuples = isinstance(trace.last_output, tuple)
        view.final_norm = self._final_norm(seen, _hidden(trace.last_output), final)
        self._learn_embedding(tokens, trace.block_inputs[0])
        self._learn_logits(raw, logits)
        self._prove(tokens, logits)

    def _final_norm(self, seen: Sequence[Any], last_output: Tensor, final: Tensor) -> nn.Module:
        for module, given, output in seen:
            if given is last_output and _same(output, final):
                return cast(nn.Module, module)
        if _same(last_output, final):
            return nn.Identity()
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
        with view._watch((0,)) as trace:
            view.model(input_ids=flipped, use_cache=False)
        if not _same(cast(Tensor, view.embedding(flipped)) + positions, trace.block_inputs[0]):
            raise self._refuse(
                "what enters its first block is not the scaled embedding plus positions"
            )

    def _learn_logits(self, raw: Tensor, logits: Tensor) -> None:
        view = self.view
        cap = getattr(view.config, "final_logit_softcapping", None)
        # The cap first: small logits pass it almost unbent, and would look like no cap at all.
        if cap is not None and _same(torch.tanh(raw / cap) * cap, logits):
            view.softcap = float(cap)
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
        if not _same(view.unembed(output.final), logits):
            raise self._refuse("the view does not reproduce the model's own logits")
        last = output.call(view.blocks[-1], output.states[layer])
        if not _same(view.unembed(view.final_norm(last)), logits):
            raise self._refuse("its last block cannot be run apart from the model")

    def _refuse(self, property_: str) -> BackboneError:
        return BackboneError(f"{_name(self.view.model)} cannot carry heads: {property_}.")


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Without dropout and gradients for a moment."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash that tells a backbone from any other, in float32 as in bfloat16.

    It covers every parameter's name and shape and up to 256 evenly spread values of each, rounded
    to bfloat16, so that it takes moments for a large model too.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // 256)][:256]
        rounded = sample.to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(rounded.tobytes())
    return digest.hexdigest()[:16]


def _find_blocks(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that holds the decoder blocks, the list's name in it, and the list."""
    count = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for holder in model.modules():
        for name, child in holder.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return holder, name, child
    raise BackboneError(
        f"{_name(model)} cannot carry heads: it has no list of {count} decoder blocks "
        "(num_hidden_layers of its config)."
    )


def _split_call(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, BlockCall]:
    """A block's hidden state, and the rest of its call."""
    if args:
        return args[0], BlockCall(args[1:], dict(kwargs))
    rest = dict(kwargs)
    return rest.pop("hidden_states"), BlockCall((), rest)


def _hidden(output: Any) -> Tensor:
    """The hidden state of what a block returns: a tensor, or a tuple that begins with it."""
    return cast(Tensor, output[0] if isinstance(output, tuple) else output)


def _required(module: nn.Module | None, model: PreTrainedModel, what: str) -> Any:
    if module is None or not isinstance(getattr(module, "weight", None), Tensor):
        raise BackboneError(f"{_name(model)} cannot carry heads: it has no {what} with a weight.")
    return module


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of a differently ordered sum in the tensors' type."""
    if a.shape != b.shape:
        return False
    tolerance = min(32 * torch.finfo(b.dtype).eps, 2 * torch.finfo(torch.bfloat16).eps)
    scale = float(b.abs().max())
    return bool(torch.allclose(a.float(), b.float(), rtol=tolerance, atol=tolerance * scale))


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__
