"""What a model with heads, or without, is asked to write.

Shapes: B rows, T prompt.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, Unpack, overload

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.generation.stopping_criteria import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from foretell.backbone import Backbone
from foretell.decoding import (
    AcceptanceRule,
    Batch,
    DecodeOptions,
    Drafter,
    Generation,
    Measured,
    ModelDrafter,
    Sampling,
    SpeculativeSampling,
    Step,
    Stop,
    StopStrings,
    StopTokens,
    TreeShape,
    decode,
    drafter_named,
    rule_named,
)
from foretell.decoding.drafters import DRAFT_LENGTH, NAMED, require_trees
from foretell.decoding.numbers import whole, wholes
from foretell.decoding.turns import turn_of
from foretell.errors import HeadError, InputError
from foretell.generation.draft_models import require_same_tokens, resize_vocabulary
from foretell.generation.options import UNSET, GenerateOptions, StreamOptions
from foretell.generation.streaming import Columns
from foretell.generation.translation import (
    OURS,
    Request,
    filling,
    inferred_mask,
    stop_tokens,
    translated,
)
from foretell.heads import Head

LENGTH = "{} needs max_new_tokens: how many tokens to add at most."


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """What was in training mode before is so again afterwards, part by part."""
    training = [part for part in module.modules() if part.training]
    try:
        yield
    finally:
        for part in training:
            part.training = True


class Generating(nn.Module):
    """The half of `MTPModel` that decodes.

    Args:
        model: the backbone.

    Attributes:
        head: the heads that draft for it, if it has some.
        backbone_path: where the backbone was loaded from, if that is known.
        tokenizer_path: where its tokenizer lies, if that is known.
    """

    head: Head | None

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.lm = model
        self.backbone = Backbone(model)
        self.backbone_path: str | None = None
        self.tokenizer_path: str | None = None
        self._measured: dict[str, dict[tuple[Any, ...], Measured]] = {}  # by a drafter's name
        self._draft_models: dict[str, Any] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
    ) -> Self:
        """Load another, to draft with."""
        raise NotImplementedError

    def merge_adapters(self) -> None:
        """Make the adapters part of the backbone, which then is an ordinary one."""
        raise NotImplementedError

    # -- what transformers' models have ---------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Where the backbone is."""
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbone's weights."""
        return self.backbone.dtype

    @property
    def config(self) -> PreTrainedConfig:
        """The backbone's."""
        return self.lm.config

    @property
    def generation_config(self) -> GenerationConfig:
        """The backbone's: what `generate` and `decode` take from it is in docs/decoding.md."""
        return self.lm.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        self.lm.generation_config = config

    def can_generate(self) -> bool:
        """Yes; transformers' pipelines ask."""
        return True

    @property
    def input_modalities(self) -> Any:
        """Text; pipelines print it."""
        return self.lm.input_modalities

    @property
    def output_modalities(self) -> Any:
        """Text; pipelines print it."""
        return self.lm.output_modalities

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """The end-of-sequence tokens of the model's generation config."""
        return stop_tokens(self.generation_config)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The stop strings of the model's generation config."""
        strings = getattr(self.generation_config, "stop_strings", None) or ()
        return (strings,) if isinstance(strings, str) else tuple(strings)

    @property
    def _padding(self) -> int | None:
        return getattr(self.generation_config, "pad_token_id", None)

    # -- decoding, in our words -----------------------------------------------------------------

    def require_fit(self) -> None:
        """Check that the head lies where the backbone does, in a type no narrower.

        Raises:
            HeadError: `to` moved one of them and not the other.
            InputError: it drafts tokens that the backbone has no more.
        """
        if self.head is None:
            return
        own, backbone = next(self.head.parameters()), self.backbone
        if self.head.vocabulary is not None:
            self.head.vocabulary.check(backbone.vocab_size)
        wide = torch.promote_types(own.dtype, backbone.dtype) == own.dtype
        if own.device != backbone.device or not wide:
            raise HeadError(
                f"the heads are {own.dtype} on {own.device}, the backbone {backbone.dtype} on "
                f"{backbone.device}: move or cast the MTPModel, not one of its parts."
            )

    def run(self, batch: Batch, options: DecodeOptions) -> Iterator[tuple[Step, ...]]:
        """Continue a batch step by step: what all ways to decode come to, the server's too.

        Puts the model into evaluation mode. What is asked for is checked before the first step.

        Raises:
            HeadError: see `require_fit`.
            BackboneError, InputError: see `foretell.decoding.decode`.
        """
        self.require_fit()
        if any(module.training for module in self.modules()):  # eval() takes far longer to see
            self.eval()
        return decode(self.backbone, batch, options)

    def stream(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | Sequence[int] = UNSET,
        stop_tokens: int | Collection[int] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        sampling: Sampling | None = None,
        drafter: Drafter | str | None = None,
        draft_length: int | Literal["auto"] | None = None,
        rule: AcceptanceRule | str | None = None,
        pass_width: int | None = None,
        compiled: bool = False,
    ) -> Iterator[tuple[Step, ...]]:
        """`decode`, one step at a time. Puts the model into evaluation mode.

        What transformers' `generate` takes from the model's generation config counts here too:
        penalties, tokens that are suppressed or forced, stop strings, padding. Only how tokens are
        drawn does not: `do_sample`, `temperature` and the like of a checkpoint are left out, and
        `sampling` says it.

        Args:
            input_ids: (B, T), the prompts.
            attention_mask: (B, T), 0 where a prompt is padded, on either side. By default what
                transformers infers: padded where the generation config's padding token stands,
                unless that ends texts too.
            max_new_tokens: how many tokens to emit, per row.
            stop_tokens: end after this one, or the first of these; by default the end-of-sequence
                tokens of the model's generation config. `()` ends nowhere earlier.
            stop_strings: end after the token with which this one, or one of these, is complete; by
                default those of the model's generation config.
            tokenizer: for `stop_strings`.
            sampling: how tokens are chosen; greedily by default.
            drafter: what proposes tokens, or its name (see `drafter_named`); by default the model's
                heads, or nothing without heads.
            draft_length: how many tokens the heads, or a drafter that is named, draft; by default
                one per depth, or 4. `"auto"` has every step of any drafter as long as brings most
                tokens per second, down to 0; what earlier calls like this one have measured counts
                (see `DecodeOptions.lengths`).
            rule: what of a draft is accepted, or its name, such as `"exact"` or `"top-k:2"`; by
                default what leaves the output as it is.
            pass_width: make every pass after the prompts this wide, whatever is drafted, so that
                what is drafted cannot change how near-ties are rounded; longer drafts are cut.
            compiled: run passes of few shapes, as CUDA graphs on a GPU, elsewhere compiled by
                torch: minutes once, then faster steps.

        Raises:
            InputError: `max_new_tokens` is not given; or see `decode`.
        """
        if max_new_tokens is UNSET:
            raise InputError(LENGTH.format("stream"))
        with turn_of(self.lm):
            options = self.options(
                sampling=sampling,
                drafter=drafter,
                draft_length=draft_length,
                rule=rule,
                pass_width=pass_width,
                compiled=compiled,
            )
        ends = self.stop_tokens if stop_tokens is None else stop_tokens
        ends = wholes("stop_tokens", ends)
        strings = self.stop_strings if stop_strings is None else stop_strings
        strings = (strings,) if isinstance(strings, str) else strings
        if strings and tokenizer is None:
            raise InputError(
                f"stop strings ({', '.join(map(repr, strings))}) need the tokenizer too."
            )
        stops: list[Stop] = [StopTokens(ends)]
        if tokenizer is not None and strings:
            stops.append(StopStrings(strings, tokenizer))
        if attention_mask is None:
            attention_mask = inferred_mask(input_ids, self._padding, ends or self.stop_tokens)
        with turn_of(self.lm):  # what is not known of the model yet is tried on it
            batch = Batch(self.backbone, input_ids, attention_mask, max_new_tokens, stops)
            return self.run(batch, options)

    def decode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        **options: Unpack[StreamOptions],
    ) -> Generation:
        """Continue prompts: the backbone's own tokens, in fewer forward passes.

        The arguments are those of `stream`. As in transformers a text may become longer than the
        model was built for, which is logged once; it ends where the model has no more positions
        (`Generation.full`).

        Raises:
            InputError: a prompt that is empty or longer than the context, or an option out of its
                range.
            BackboneError: the backbone's cache cannot be rolled back, or cannot hold trees.
            HeadError: see `require_fit`.
        """
        if unknown := options.keys() - StreamOptions.__annotations__.keys():
            known = ", ".join(StreamOptions.__annotations__)
            raise InputError(
                f"decode has no argument {min(unknown)!r}; it has {known}. transformers' words go "
                "to generate."
            )
        if "max_new_tokens" not in options:
            raise InputError(LENGTH.format("decode"))
        if attention_mask is None:
            told = options.get("stop_tokens")
            ends = self.stop_tokens if told is None else wholes("stop_tokens", told)
            attention_mask = inferred_mask(input_ids, self._padding, ends or self.stop_tokens)
        steps = list(self.stream(input_ids, attention_mask, **options))
        fill = filling(self._padding, self.stop_tokens)
        return self._generation(input_ids, attention_mask, steps, fill)

    def options(
        self,
        *,
        sampling: Sampling | None = None,
        drafter: Drafter | str | None = None,
        draft_length: int | Literal["auto"] | None = None,
        rule: AcceptanceRule | str | None = None,
        pass_width: int | None = None,
        compiled: bool = False,
        config: GenerationConfig | None = None,
    ) -> DecodeOptions:
        """The options of the loop: names resolved, and what was not said by the model's default.

        The arguments are those of `stream`, and of `DecodeOptions`.
        """
        auto = draft_length == "auto"
        length = None if auto or draft_length is None else whole("draft_length", draft_length)
        if drafter is None:
            drafter, length = ("none", None) if self.head is None else ("heads", length)
        if isinstance(drafter, str):
            drafter = self.drafter_named(drafter, length)
        elif length is not None:
            raise InputError("a drafter that is given has its own draft length.")
        return DecodeOptions(
            sampling=sampling or Sampling(),
            drafter=drafter,
            rule=rule_named(rule) if isinstance(rule, str) else rule or SpeculativeSampling(),
            auto_length=auto,
            pass_width=pass_width,
            compiled=compiled,
            config=config,
        )

    def drafter_named(
        self, name: str, length: int | None = None, shape: TreeShape | None = None
    ) -> Drafter:
        """A new drafter for this model.

        Args:
            name: `"heads"`, `"none"`, `"lookup"` (copies from the text), or a draft model: a
                directory, a Hub id or a bundled model, which is loaded once.
            length: tokens per draft; None: all depths of the heads, else 4.
            shape: of trees; None drafts chains.

        Raises:
            InputError: there is no such drafter, or it cannot draft so.
            HeadError: the model has no heads.
        """
        if name in NAMED:
            drafter = drafter_named(name, self.backbone, self.head, length, shape)
        else:
            require_trees(self.backbone, shape)
            draft = self.draft_model(name).backbone
            length = DRAFT_LENGTH if length is None else length
            drafter = ModelDrafter(self.backbone, draft, length, shape)
        # Another drafter in every call, of the same kind: what is measured counts for all.
        drafter.measured = self._measured.setdefault(name, {})
        return drafter

    def draft_model(self, name: str) -> Self:
        """A smaller model by name, on this one's device and in its type, which drafts for it.

        Where their tokenizers agree and their vocabularies differ in size all the same, the rows of
        one embedding are padded further than those of the other (Qwen2.5 has 151,936 or 152,064 of
        them, by size): the draft model's are cut, or filled up with their mean.

        Raises:
            InputError: there is no such model, or its vocabulary is another.
        """
        known: Self | None = self._draft_models.get(name)
        if known is None or (known.dtype, known.device) != (self.dtype, self.device):
            known = self._draft_models[name] = self._load_draft_model(name)
        return known

    def _load_draft_model(self, name: str) -> Self:
        draft = type(self).from_pretrained(name, dtype=self.dtype, device=self.device)
        ours, its = self.backbone, draft.backbone
        require_same_tokens(name, its, draft.tokenizer_path, ours, self.tokenizer_path)
        if its.vocab_size != ours.vocab_size:
            draft.merge_adapters()
            draft.head = None  # it does not fit the new vocabulary
            resize_vocabulary(draft.backbone, ours.vocab_size)
        return draft

    # -- decoding, in transformers' words -------------------------------------------------------

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[True],
        **options: Unpack[GenerateOptions],
    ) -> Generation: ...

    @overload
    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        return_dict_in_generate: Literal[False] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Tensor: ...

    def generate(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int | None = UNSET,
        max_length: int | None = UNSET,
        min_new_tokens: int | None = UNSET,
        do_sample: bool | None = UNSET,
        temperature: float | None = UNSET,
        top_k: int | None = UNSET,
        top_p: float | None = UNSET,
        min_p: float | None = UNSET,
        repetition_penalty: float | None = UNSET,
        eos_token_id: int | Sequence[int] | None = UNSET,
        pad_token_id: int | None = UNSET,
        stop_strings: str | Sequence[str] | None = UNSET,
        tokenizer: PreTrainedTokenizerBase | None = None,
        generation_config: GenerationConfig | None = None,
        streamer: BaseStreamer | None = None,
        num_return_sequences: int | None = UNSET,
        return_dict_in_generate: bool | None = UNSET,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        seed: int | Sequence[int] | None = None,
        drafter: Drafter | str | None = None,
        draft_length: int | Literal["auto"] | None = None,
        rule: AcceptanceRule | str | None = None,
        compiled: bool = False,
        pass_width: int | None = None,
        **others: Any,
    ) -> Tensor | Generation:
        """Transformers' `generate`, in fewer forward passes: the same tokens, by the same words.

        What is not said here counts as there: by `generation_config`, else by the model's own, else
        by transformers' defaults. Only what is drawn is other random numbers of the same
        distribution. The arguments whose meaning is transformers' are not explained again.

        Args:
            input_ids: (B, T), the prompts; None begins with the model's first token.
            attention_mask: (B, T), 0 where a prompt is padded. Each row is continued as if it were
                alone; transformers goes on after padding on the right, and shows padding on the
                left to penalties and other constraints.
            tokenizer: for `stop_strings`.
            streamer: is shown the prompts, then each token of all rows as soon as every row has
                come to it.
            return_dict_in_generate: return a `Generation`, which also has what every pass drafted.
            logits_processor: may depend on a row's tokens and logits alone: each is shown one row
                at a time, and drafted tokens too.
            stopping_criteria: are asked for one row at a time, token by token, without scores. A
                row that they end is filled up; transformers goes on with it until all have ended,
                where no token ends texts.
            seed: of the rows that are drawn, one each, or one number for the first, which the
                others follow; by default from torch's own random numbers (`torch.manual_seed`).
            drafter, draft_length, rule, compiled, pass_width: see `stream`.
            **others: any field of transformers' `GenerationConfig`. `use_cache` changes nothing,
                nor do `token_type_ids` of zeros for a model that does not read them.

        Returns:
            (B · num_return_sequences, T') prompts and continuations, filled up at the end.

        Raises:
            InputError: an argument is unknown, cannot be honoured (beams, scores, a cache of the
                caller's, …) or makes no sense, or a prompt is empty or too long.
            BackboneError: the backbone's cache cannot be rolled back.
            HeadError: see `require_fit`.
        """
        given = {name: value for name, value in locals().items() if value is not UNSET}
        told = {**given, **given.pop("others")}
        del told["self"], told["others"]
        with modes_kept(self):
            return self.finish(*self.begin(told))

    def begin(self, told: Mapping[str, Any]) -> tuple[Request, Batch, Iterator[tuple[Step, ...]]]:
        """A call of `generate`, translated and checked: all but its steps.

        Args:
            told: the arguments by name; None counts as something that was said, but for ours.
        """
        request = translated(self.lm, told)
        ours = {name: told[name] for name in OURS if name in told and name != "seed"}
        with turn_of(self.lm):  # what is not known of the model yet is tried on it
            options = self.options(sampling=request.sampling, config=request.config, **ours)
            batch = Batch(
                self.backbone,
                request.input_ids,
                request.attention_mask,
                request.max_new_tokens,
                request.stops,
                request.row_stops,
            )
            return request, batch, self.run(batch, options)

    def finish(
        self, request: Request, batch: Batch, stream: Iterator[tuple[Step, ...]]
    ) -> Tensor | Generation:
        """What a call of `generate` returns, once its steps are done."""
        steps = []
        columns = Columns(request.streamer, len(batch), request.fill)
        columns.begin(request.input_ids)
        for step in stream:
            steps.append(step)
            columns.add(step, [row.active for row in batch.rows])
        columns.end()
        found = self._generation(request.input_ids, request.attention_mask, steps, request.fill)
        return found if request.as_dict else found.sequences

    def _generation(
        self, prompts: Tensor, mask: Tensor | None, steps: list[tuple[Step, ...]], fill: int
    ) -> Generation:
        continuations = [
            [token for step in row for token in step.tokens] for row in zip(*steps, strict=True)
        ]
        longest, most = max(map(len, continuations)), self.backbone.max_length
        seen = torch.ones_like(prompts) if mask is None else mask
        filled = [row + [fill] * (longest - len(row)) for row in continuations]
        lengths = zip(seen.bool().sum(1).tolist(), continuations, strict=True)
        return Generation(
            torch.cat([prompts, prompts.new_tensor(filled, dtype=torch.long)], dim=1),
            continuations,
            steps,
            [most is not None and length + len(new) >= most for length, new in lengths],
        )
