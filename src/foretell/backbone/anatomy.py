"""The parts of a causal language model: where they lie, and how embeddings and logits are scaled.

Shapes: B batch, T time, D hidden, V vocabulary, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from foretell.backbone.int8 import Absent, Int8Linear
from foretell.backbone.products import lay_out, linear
from foretell.errors import BackboneError


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


@dataclass(frozen=True, eq=False)
class Anatomy:
    """What was found in a model, once. The parts are looked up by their place each time, since
    `resize_token_embeddings` and others exchange them.

    Attributes:
        model: whose parts they are.
        decoder_path: of the module that holds the blocks.
        blocks_name: of their list in it.
        num_layers: L.
        norm_name: of the final norm in the decoder; None where there is none.
        embed_scale, logit_scale: the family's own scaling.
        softcap: of the logits; None: they are not capped.
        answers: how many things a block answers with; 0: its hidden state, bare.
    """

    model: PreTrainedModel
    decoder_path: str
    blocks_name: str
    num_layers: int
    norm_name: str | None = None
    embed_scale: Scale = Scale()
    logit_scale: Scale = Scale()
    softcap: float | None = None
    answers: int = 0

    @property
    def decoder(self) -> nn.Module:
        """What holds the blocks."""
        return self.model.get_submodule(self.decoder_path)

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, as many as when heads were attached: taps know them by number.

        Raises:
            BackboneError: there are more or fewer now.
        """
        blocks = cast(nn.ModuleList, self.decoder._modules[self.blocks_name])
        if len(blocks) != self.num_layers:
            raise BackboneError(
                f"{name_of(self.model)} had {self.num_layers} decoder blocks when heads were "
                f"attached and has {len(blocks)} now; attach heads again."
            )
        return blocks

    @property
    def embedding(self) -> Any:
        """The input embedding."""
        return self._with_weight(self.model.get_input_embeddings(), "input embedding")

    @property
    def output(self) -> Any:
        """The output embedding, which answers with raw logits."""
        return self._with_weight(self.model.get_output_embeddings(), "output embedding")

    def _with_weight(self, module: nn.Module | None, what: str) -> Any:
        if not isinstance(getattr(module, "weight", None), (Tensor, Absent)):
            raise cannot_carry(self.model, f"it has no {what} with a weight")
        return module

    @property
    def final_norm(self) -> nn.Module:
        """What lies between the last block and the output embedding."""
        if self.norm_name is None:
            return nn.Identity()
        return cast(nn.Module, self.decoder._modules[self.norm_name])

    @property
    def config(self) -> Any:
        """The text part of the model's config."""
        return self.model.config.get_text_config()

    @property
    def hidden_size(self) -> int:
        """D, the width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def vocab_size(self) -> int:
        """V, the number of logits."""
        return int(self.output.weight.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the model's input goes."""
        return cast(torch.device, self.embedding.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return cast(torch.dtype, self.output.weight.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings with the family's own scaling, without positions: (B, T) → (B, T, D)."""
        return self.embed_scale(cast(Tensor, self.embedding(tokens)))

    def unembed(self, final: Tensor) -> Tensor:
        """Logits with the family's own scaling and soft-capping: (..., D) → (..., V)."""
        output = self.output
        return self._scaled(cast(Tensor, output(final.to(output.weight.dtype))))

    def unembed_some(self, tokens: Tensor) -> Callable[[Tensor], Tensor]:
        """`unembed` for some tokens (V',) alone: (..., D) → (..., V').

        Their rows of the output head are copied once where no gradient is to reach them (see
        `foretell.backbone.products` where there is none at all), or else in every call. Those of 8
        bits are copied as they are. An output
        head that is more than a matrix computes all logits.
        """
        output = self.output
        if isinstance(output, Int8Linear):
            some = output.some(tokens)
            return lambda final: self._scaled(some(final.to(output.weight.dtype)))
        if type(output) is not nn.Linear:
            return lambda final: self.unembed(final)[..., tokens]

        def rows() -> tuple[Tensor, Tensor | None]:
            return output.weight[tokens], None if output.bias is None else output.bias[tokens]

        learns = torch.is_grad_enabled() and any(p.requires_grad for p in output.parameters())
        kept = None
        if not learns:
            with torch.inference_mode(False), torch.no_grad():
                kept = rows()
            if not torch.is_grad_enabled():
                lay_out(kept[:1])

        def unembed(final: Tensor) -> Tensor:
            weight, bias = rows() if kept is None else kept
            return self._scaled(linear(final.to(weight.dtype), weight, bias))

        return unembed

    def _scaled(self, logits: Tensor) -> Tensor:
        logits = self.logit_scale(logits)
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits


def name_of(model: PreTrainedModel) -> str:
    """The model's class, as errors name it."""
    return type(model).__name__


def cannot_carry(model: PreTrainedModel, property_: str) -> BackboneError:
    """The error that refuses a model, with the property that is missing."""
    return BackboneError(f"{name_of(model)} cannot carry heads: {property_}.")
