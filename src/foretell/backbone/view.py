"""The view on a causal language model: embed, run, tap, unembed, and a fresh decoder block.

The model stays what it is, an ordinary `PreTrainedModel`. The view knows no family by name. It
watches one small forward pass, learns from it where the parts lie and how they are scaled, and then
proves on the same pass that it reproduces the model's own logits. What does not fit is refused with
the property that is missing.

Shapes: B batch, T time, D hidden, V vocabulary, L layers.
"""

import copy
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedModel

from foretell.backbone.anatomy import Anatomy, cannot_carry, name_of
from foretell.backbone.auxiliary import AuxiliaryLoss, find_auxiliary
from foretell.backbone.calls import (
    BackboneOutput,
    BlockCall,
    Recorder,
    StandIn,
    Trace,
    cache_keyword,
    hidden_of,
    traced,
    unwatch,
    with_stand_ins,
)
from foretell.backbone.context import room, stated, warn_longer
from foretell.backbone.dense import make_dense
from foretell.backbone.discovery import Discovery, discover
from foretell.backbone.rotary import Rotary, Rotation, document_extent, reads_again
from foretell.backbone.trying import evaluating, same
from foretell.backbone.weights import (
    block_by_class,
    packed,
    packed_by,
    require_present,
    stored,
)
from foretell.backbone.wide import WideBlock
from foretell.errors import BackboneError, InputError
from foretell.heads import BlockInit, BlockKind


class Backbone(Anatomy):
    """The view. Building it runs the model once, on a few random tokens, to learn and to check.

    Args:
        model: any `AutoModelForCausalLM`; it is not modified.

    Raises:
        BackboneError: the model lacks a property that heads need; the message says which.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        found = discover(model)
        super().__init__(**vars(found.anatomy))
        self._rehearsed: tuple[Any, nn.Module, Recorder] | None = None
        self._open: list[Trace] = []
        with evaluating(model):
            self._prove(found)

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which nobody watches, whatever streams there are here."""
        return {**vars(self), "_open": [], "_rehearsed": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        unwatch(self.model)

    def _prove(self, found: Discovery) -> None:
        """On the pass that it was learned from: the view must give the model's own logits."""
        layer = self.num_layers - 1
        output = self(found.tokens, layers=(layer,))
        if not same(self.unembed(output.final), found.logits):
            raise cannot_carry(self.model, "the view does not reproduce the model's own logits")
        last = output.call(self.blocks[-1], output.states[layer])
        if not same(self.unembed(self.final_norm(last)), found.logits):
            raise cannot_carry(self.model, "its last block cannot be run apart from the model")

    # -- what it is -----------------------------------------------------------------------------

    @cached_property
    def max_length(self) -> int | None:
        """The longest text that the model can read, in tokens; None where no end was found.

        Learned positions end; rotary ones go on after the `context` that the model was built for.
        """
        return room(self)

    @property
    def context(self) -> int | None:
        """The longest text that the model was built for, in tokens; None where nothing says so."""
        named = [n for n in (stated(self.config), self.max_length) if n is not None]
        return min(named, default=None)

    def require_room(self, length: int, what: str) -> None:
        """See to it that `what`, of this many tokens each, can be read; say so where it is longer
        than what the model was built for, as transformers does.

        Raises:
            InputError: the model has no positions for that many.
        """
        if self.max_length is not None and length > self.max_length:
            raise InputError(
                f"{what} of {length} tokens are longer than the model's context of "
                f"{self.max_length}, after which it has no positions; make them shorter."
            )
        if self.context is not None and length > self.context:
            warn_longer(type(self.model).__name__, self.context)

    @property
    def packed_by(self) -> str | None:
        """What packed the weights, such as `bitsandbytes`; None where all are plain tensors."""
        return packed_by(self.model)

    def fingerprint(self) -> str:
        """See `fingerprint`."""
        return fingerprint(self.model)

    # -- what it does ---------------------------------------------------------------------------

    def __call__(
        self,
        tokens: Tensor,
        *,
        layers: Iterable[int] = (),
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        rotation: Rotation | None = None,
        auxiliary: bool = False,
    ) -> BackboneOutput:
        """Run the model up to its output head.

        Args:
            tokens: (B, T) token ids.
            layers: which residual states to keep, 0…L.
            attention_mask: (B, S) ones and zeros over cache and tokens, or what is added to
                attention's scores, (B, 1, T, S), by kind of layer where there are several; None
                where nothing is padded.
            position_ids: (B, T); restarting at 0 inside a row where documents are packed.
            cache: appended to in place; None for a pass that keeps nothing.
            rotation: see `rotation`; by default every document is rotated as by itself.
            auxiliary: keep what the model's auxiliary loss is made of, where it has one.
        """
        beside = self.auxiliary if auxiliary else None
        given = {
            **({} if beside is None else beside.options),
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            self._cache_keyword: cache,
        }
        if rotation is None and self.rotary is not None:
            rotation = self.rotation(self._places(tokens, cache, position_ids))
        with self.watch(layers) as trace, self.rotated(rotation):
            output = self.decoder(
                input_ids=tokens,
                use_cache=cache is not None,
                **{name: value for name, value in given.items() if value is not None},
            )
        states = dict(trace.block_inputs)
        if self.num_layers in layers:
            states[self.num_layers] = hidden_of(trace.last_output)
        decoded = None if beside is None else output
        call = cast(BlockCall, trace.call)
        return BackboneOutput(output[0], states, call, decoded, position_ids)

    @cached_property
    def rotary(self) -> Rotary | None:
        """What rotates otherwise in longer passes; None where nothing does, as in most families."""
        return Rotary.find(self)

    @cached_property
    def reread_behind(self) -> int | None:
        """The length after which `generate` reads a row anew, every token rotated as in a longer
        text; None where it never does.
        """
        if self.rotary is None:
            return None
        switch = self.rotary.switch
        return switch if reads_again(self, switch, self._cache_keyword) else None

    def rotation(self, positions: Tensor, extent: Tensor | None = None) -> Rotation | None:
        """How tokens are rotated, where that depends on how far a pass reaches; else None.

        Args:
            positions: (B, T).
            extent: (B, T), how many tokens the pass would hold that each is to be rotated as in; by
                default as many as its document, which begins where positions restart.
        """
        if self.rotary is None:
            return None
        extent = document_extent(positions) if extent is None else extent
        return self.rotary.rotation(positions, extent, self.embedding.weight)

    def rotated(self, rotation: Rotation | None = None) -> AbstractContextManager[None]:
        """Have the decoder rotate tokens so, within."""
        return nullcontext() if self.rotary is None else self.rotary.giving(rotation or {})

    @staticmethod
    def _places(tokens: Tensor, cache: Cache | None, position_ids: Tensor | None) -> Tensor:
        """(B, T) or (1, T): where none are given, those after the cache."""
        if position_ids is not None:
            return position_ids
        places = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        return places if cache is None else places + cache.get_seq_length()

    @cached_property
    def auxiliary(self) -> AuxiliaryLoss | None:
        """What the model's own loss has beside the cross-entropy; None: nothing.

        Raises:
            BackboneError: it has something that cannot be had apart from the model's own forward.
        """
        return find_auxiliary(self)

    def auxiliary_loss(self, output: BackboneOutput) -> Tensor:
        """What the model adds to its cross-entropy, weighted as it weighs it; else 0.

        transformers has it balance experts where `config.output_router_logits` is set; a backbone
        that learns here always does.
        """
        if output.decoded is None or self.auxiliary is None:
            return output.final.new_zeros((), dtype=torch.float32)
        return self.auxiliary(output.decoded)

    def block_call(
        self,
        tokens: Tensor,
        position_ids: Tensor,
        cache: Cache | None,
        attention_mask: Any = None,
        rotation: Rotation | None = None,
    ) -> BlockCall:
        """How the model would call its last block on `tokens` (B, T) after `cache`.

        The decoder's own code prepares the arguments: it runs with every block replaced by a
        stand-in that does nothing, so that this costs an embedding, a mask and a rotary embedding,
        and no layer. Some models hand their blocks what earlier blocks computed, which this cannot
        know: ask `foretell.backbone.abilities.rehearses` first.
        """
        rehearsal, recorder = self._rehearsal()
        with self.rotated(self.rotation(position_ids) if rotation is None else rotation):
            rehearsal(
                input_ids=tokens,
                position_ids=position_ids,
                use_cache=cache is not None,
                **({} if cache is None else {self._cache_keyword: cache}),
                **({} if attention_mask is None else {"attention_mask": attention_mask}),
            )
        if (call := recorder.take()) is None:
            raise BackboneError(
                f"{name_of(self.model)} cannot draft in sequence: its decoder does not go through "
                "its list of blocks."
            )
        return call

    @cached_property
    def _cache_keyword(self) -> str:
        return cache_keyword(self.decoder)

    def _rehearsal(self) -> tuple[nn.Module, Recorder]:
        """The decoder with stand-ins for blocks, sharing every other module with the real one."""
        decoder, blocks = self.decoder, list(self.blocks)
        made_of = decoder, dict(decoder._modules), blocks
        if self._rehearsed is None or self._rehearsed[0] != made_of:
            recorder = Recorder(self.answers)
            stand_ins = nn.ModuleList(StandIn(block, recorder) for block in blocks)
            rehearsal = with_stand_ins(decoder, {self.blocks: stand_ins})
            self._rehearsed = made_of, rehearsal, recorder
        return self._rehearsed[1:]

    def new_block(self, init: BlockInit = "fresh", kind: BlockKind = "same") -> nn.Module:
        """A trainable block like the model's last one, which writes to layer 0 of its cache.

        `foretell.decoding.cache.keeps_blocks` proves that it does.
        """
        if (packer := self.packed_by) is None:
            config = self.model.config
            shared = {id(value): value for value in (config, self.config)}
            block = copy.deepcopy(self.blocks[-1], memo=shared)
        elif init == "fresh":
            last = f"{self.blocks_name}.{self.num_layers - 1}"
            block = block_by_class(self.model, f"{self.decoder_path}.{last}".removeprefix("."))
        else:
            raise BackboneError(
                f"the weights of {name_of(self.model)} are packed ({packer}), and a "
                "block cannot learn from a copy of them; use init 'fresh'."
            )
        for module in block.modules():
            for name in self._layer_numbers & vars(module).keys():
                if vars(module)[name] == self.num_layers - 1:
                    setattr(module, name, 0)
        if kind == "dense":
            make_dense(block, self.config)
        if kind == "wide":
            block = WideBlock(block)
        if init == "fresh":
            self._initialise(block)
        return block.requires_grad_(True)

    @cached_property
    def _layer_numbers(self) -> set[str]:
        """The attributes in which blocks keep their place in the list, whatever a family calls it.

        They hold it somewhere in every block that has them, and more than one has.
        """
        held: dict[str, list[bool]] = {}
        for place, block in enumerate(self.blocks):
            numbers = {
                (name, value)
                for module in block.modules()
                for name, value in vars(module).items()
                if type(value) is int
            }
            for name, _ in numbers:
                held.setdefault(name, []).append((name, place) in numbers)
        return {name for name, places in held.items() if len(places) > 1 and all(places)}

    def new_norm(self) -> nn.Module:
        """A trainable copy of the final norm."""
        return copy.deepcopy(self.final_norm).requires_grad_(True)

    def fresh_norm(self) -> nn.Module:
        """A norm of the final norm's kind, as the model initialises it."""
        norm = self.new_norm()
        self._initialise(norm)
        return norm

    def _initialise(self, block: nn.Module) -> None:
        for part in (*block.parameters(), *block.buffers(), *block.modules()):
            part.__dict__.pop("_is_hf_initialized", None)  # or transformers leaves it as it is
        with torch.no_grad():
            block.apply(
                self.model._init_weights
            )  # children first, as transformers does: parents may correct

    @property
    def watchers(self) -> tuple[Trace, ...]:
        """Those that `watch` has open."""
        return tuple(self._open)

    @contextmanager
    def watch(self, layers: Iterable[int]) -> Iterator[Trace]:
        """Record, while the model runs, what enters `layers` and how the last block is called.

        Passes within share it, so that their hooks are there only once. Streams that take turns
        may end in any order.
        """
        if shared := next((open for open in self._open if open.layers == set(layers)), None):
            yield shared
            return
        with traced(self.blocks, set(layers)) as trace:
            self._open.append(trace)
            try:
                yield trace
            finally:
                self._open = [other for other in self._open if other is not trace]


def fingerprint(model: PreTrainedModel) -> str:
    """A short hash that tells a backbone from any other, in float32 as in bfloat16.

    It covers every parameter's name and shape and up to 256 evenly spread values of each, rounded
    to bfloat16, so that it takes moments for a large model too. Of packed weights it covers what is
    stored, which no cast changes.

    Raises:
        BackboneError: see `require_present`.
    """
    require_present(model)
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(model.named_parameters()), **packed(model)}.items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        for part in stored(tensor.detach()):
            flat = part.reshape(-1)
            sample = flat[:: max(1, flat.numel() // 256)][:256]
            digest.update(sample.to(torch.bfloat16).float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
