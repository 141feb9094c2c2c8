"""`MTPModel`: a backbone and a head, trained together and saved together.

Shapes: B batch, T time, K depths, D hidden, V vocabulary.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import PreTrainedModel

from foretell.backbone import BackboneOutput
from foretell.backbone.int8 import is_quantized, quantize, quantize_within
from foretell.checkpoints import (
    LOADING,
    Adapters,
    Assembled,
    Loading,
    fill_head,
    insert_adapters,
    open_checkpoint,
)
from foretell.decoding.carrying import build_head, warn_if_not_decoded
from foretell.errors import CheckpointError, HeadError, InputError
from foretell.generation import Generating
from foretell.heads import Head, HeadConfig, States, head_class, new_heads
from foretell.objective import (
    JointLoss,
    MarginalTarget,
    MTPOutput,
    ObjectiveConfig,
    depth_hidden,
)
from foretell.targets import IGNORE

log = logging.getLogger(__name__)


class MTPModel(Generating):
    """A causal language model with heads that predict further ahead.

    Build one with `attach` or `MTPModel.from_pretrained`. Without a head it is the backbone alone,
    and everything that needs no head still works.

    Args:
        model: the backbone, any `AutoModelForCausalLM`; used as it is.
        head: the head's config; None for a backbone alone.

    Attributes:
        depth_by_depth: whether gradients are computed in Gloeckle's order, see
            `foretell.objective.gradients`; otherwise by autograd over all depths.
        trained_on: a sketch of the documents that the heads learned from, saved with them, see
            `foretell.data.Sketch`; empty where that is not known.
    """

    def __init__(self, model: PreTrainedModel, head: HeadConfig | None = None) -> None:
        super().__init__(model)
        self.backbone_trains = True
        self.adapters: Adapters | None = None
        self.depth_by_depth = True
        self.trained_on: Mapping[str, Any] = {}
        self.head = None if head is None else build_head(self.backbone, head)

    @property
    def depth(self) -> int:
        """K; 0 without a head."""
        return self.head.depth if self.head is not None else 0

    def require_head(self) -> Head:
        """The head, or an error that says how to get one."""
        if self.head is None:
            raise HeadError("the model has no heads; train some with `foretell train`.")
        return self.head

    @property
    def _assembled(self) -> Assembled:
        return Assembled(self.lm, self.head, self.adapters, self.trained_on)

    def fingerprint(self) -> str:
        """Of the backbone, or of its base where adapters are inside."""
        return self._assembled.fingerprint

    def adapt(self, make: Callable[[PreTrainedModel], Adapters]) -> None:
        """Put adapters into the backbone, made by `make`; they are saved beside the heads.

        Raises:
            InputError: there are some already, they adapt the embedding or the output head, which
                heads read directly, or are no part of the model's layers (prompt tuning).
        """
        self.adapters = insert_adapters(self.backbone, make)

    def merge_adapters(self) -> None:
        """Make the adapters part of the backbone, which then is an ordinary one.

        Raises:
            InputError: its weights were rounded, see `quantize`.
        """
        if self.adapters is not None and is_quantized(self.lm):
            raise InputError("weights of 8 bits take no adapters in; merge them, then quantize.")
        if self.adapters is not None:
            self.adapters.merge()
        self.adapters = None

    def quantize(self) -> None:
        """Round the weights of backbone and heads to 8 bits, in place, for decoding on a CPU.

        It is another model then, a little worse and faster, and drafts are lossless against it (see
        `foretell.backbone.int8`). It can be neither trained nor saved.

        Raises:
            BackboneError: it is not on a CPU, or has too few weights in linear layers.
        """
        quantize(self.lm)
        if self.head is not None:
            quantize_within(self.head)
            self.head.requires_grad_(False)

    def freeze_backbone(self) -> None:
        """From now on the backbone neither learns nor drops out: it runs as in inference."""
        self.backbone_trains = False
        self.lm.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> "MTPModel":
        """As in torch, except that a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if not self.backbone_trains:
            self.lm.eval()
        return self

    @property
    def layers(self) -> tuple[int, ...]:
        """The residual states that the head reads."""
        return () if self.head is None else self.head.layers

    def depth_hidden(
        self,
        tokens: Tensor,
        output: BackboneOutput,
        depths: Sequence[int] | None = None,
        states: States | None = None,
    ) -> list[Tensor]:
        """What the output head reads for `depths` over a row, (B, T, D) each.

        Args:
            tokens: (B, T), the row that `output` was computed from.
            output: a pass of the backbone that kept `self.layers`.
            depths: which of 1…K; all by default.
            states: in place of the pass's own.
        """
        return depth_hidden(self.backbone, self.require_head(), tokens, output, depths, states)

    def count_targets(self, labels: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """How many targets depths 0…K have, (K+1,) in float32.

        Args:
            labels: (B, T) not shifted, `IGNORE` where a token is no target.
            position_ids: (B, T), restarting at every packed document; None: a row is one document.
        """
        targets = JointLoss(self.backbone, self.head).targets(labels, position_ids)
        return torch.stack([(target != IGNORE).sum() for target in targets]).float()

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        objective: ObjectiveConfig | None = None,
        weights: Sequence[float] | None = None,
        counts: Tensor | None = None,
        marginals: Mapping[int, MarginalTarget] | None = None,
        trunk: BackboneOutput | None = None,
        passes: int = 1,
        measures_all: bool = True,
    ) -> MTPOutput:
        """The training loss of depths 0…K, and the backbone's logits.

        Args:
            input_ids: (B, T).
            position_ids: (B, T), restarting at every packed document; None: a row is one document.
            labels: (B, T) not shifted, `IGNORE` where a token is no target; None: all are that are
                no padding.
            attention_mask: (B, T), 0 where a row is padded; None: nowhere.
            objective: what is learned; by default Gloeckle's sum.
            weights: of depths 0…K, by default the objective's at the start of a run. Depth 0 counts
                nothing where the backbone is frozen.
            counts: (K+1,) by what each depth's sum over positions is divided; by default the number
                of its targets here.
            marginals: by depth, for the objective that distills them.
            trunk: the backbone's pass over this row, where it has been computed before.
            passes: how many of these make up a step and are added; what is no sum over positions
                (the model's auxiliary loss) counts for its part.
            measures_all: whether the losses of depths of weight 0 are measured all the same, which
                takes the whole output head.

        Raises:
            HeadError: see `require_fit`.
            InputError: not one weight per depth, no marginals where they are distilled, or what is
                given is not of the same rows.
        """
        self.require_fit()
        loss = JointLoss(self.backbone, self.head, self.backbone_trains, self.depth_by_depth)
        return loss(
            input_ids,
            position_ids,
            labels,
            attention_mask,
            objective=objective,
            weights=weights,
            counts=counts,
            marginals=marginals,
            trunk=trunk,
            passes=passes,
            measures_all=measures_all,
        )

    # -- saving and loading ---------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        backbone: PreTrainedModel | str | Path | None = None,
        dtype: torch.dtype | str = "auto",
        device: torch.device | str | None = None,
        device_map: str | int | torch.device | Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Self:
        """Load a foretell directory, or a plain checkpoint without heads.

        Args:
            path: a directory, a Hub id, or the name of a bundled model.
            backbone: put the heads on this model, or the one that lies there, instead of the one
                they refer to. Where it is not the same one, by fingerprint, a warning is logged:
                the output is its own, and fewer drafts may be accepted.
            dtype: of the weights; "auto" is the type they are stored in, often bfloat16, which
                many CPUs compute slowly; the commands take float32 on a CPU. A backbone that is
                given has its own already.
            device: where to put the model.
            device_map: the same in transformers' words; `"auto"` is the first accelerator, or the
                CPU. Heads need their backbone on one device.
            **options: what transformers' `from_pretrained` takes to load a model
                (`attn_implementation`, `quantization_config`, …), or to find it on the Hub
                (`revision`, `subfolder`, `token`, `cache_dir`, `local_files_only`,
                `force_download`), and `torch_dtype`, the older name of `dtype`.

        Raises:
            CheckpointError: a file is missing, truncated or foreign; or the backbone is another one
                and was not named, is of another architecture, or has adapters beside the heads.
            InputError: there is no model at `path`, `dtype` is no type for one, `device_map`
                spreads it, or an option is unknown or cannot be honoured.
        """
        told = {"dtype": dtype, "device": device, "device_map": device_map, **options}
        opened = open_checkpoint(path, backbone, told)
        try:
            model = cls(opened.lm, opened.head_config())
        except (InputError, HeadError) as error:
            raise CheckpointError(f"{opened.config_file}: {error}") from None
        model.backbone_path, model.tokenizer_path = opened.source, opened.tokenizer
        if opened.stored is not None:
            vocab_size, other = model.backbone.vocab_size, opened.warning is not None
            fill_head(model.require_head(), opened.stored, opened.where, vocab_size, other=other)
            model.trained_on = opened.stored.trained_on
        if opened.warning is not None:
            log.warning("%s", opened.warning)
        if (adapters := opened.adapters) is not None:
            model.adapt(lambda lm: Adapters.load(lm, adapters))
        return model.eval()

    def save_pretrained(
        self,
        path: str | Path,
        *,
        backbone_path: str | Path | None = None,
        tokenizer: Any = None,
        **options: Any,
    ) -> None:
        """Write the model to a directory, all of it or nothing.

        Args:
            path: where to: a new or an empty directory, or one with heads that were saved to it,
                which are replaced; other files there stay.
            backbone_path: where the backbone can be loaded from: then only the heads are stored,
                with the full path of that directory, or the Hub id. None stores the backbone beside
                them, as an ordinary checkpoint.
            tokenizer: saved beside the backbone. Commands need one: they take that of the place the
                backbone was loaded from only where the heads are stored alone.
            **options: of transformers' `save_pretrained`: `max_shard_size`, and what changes
                nothing here, such as `safe_serialization=True`.

        Raises:
            CheckpointError: see `require_savable`.
            InputError: an option is unknown or cannot be honoured.
        """
        self._assembled.save(Path(path), backbone_path, tokenizer, options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        backbone_path: str | None = None,
        tokenizer: Any = None,
        private: bool | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> str:
        """Save the model and upload it to the Hub, where `from_pretrained` finds it again.

        Args:
            repo_id: `owner/name`; made where there is none.
            backbone_path: the Hub id of the backbone: then only the heads are uploaded.
            tokenizer: uploaded beside the backbone.
            private: whether a repository that is made is.
            token: of an account; by default the one that is logged in.
            **options: of `huggingface_hub.HfApi.upload_folder`: `commit_message`, `revision`,
                `create_pr`, …; and those of `save_pretrained`.

        Returns:
            the address of the commit.

        Raises:
            CheckpointError: see `require_savable`.
            InputError: `backbone_path` is a directory, which nobody else has; or an option is
                unknown or cannot be honoured.
        """
        return self._assembled.push(repo_id, backbone_path, tokenizer, private, token, options)

    def require_savable(self, backbone_path: str | Path | None = None) -> None:
        """Check that `save_pretrained` could write the model, and load it again.

        Raises:
            CheckpointError: there are adapters that it cannot save, or packed weights that
                transformers cannot.
        """
        self._assembled.require_savable(backbone_path)


def attach(
    model: PreTrainedModel | str | Path, head: str | HeadConfig = "parallel", **options: Any
) -> MTPModel:
    """Put new heads on a causal language model.

    Where the model can then be trained and not decoded, a warning is logged.

    Args:
        model: any `AutoModelForCausalLM`, used as it is; or where one lies: a directory, a Hub id
            or a bundled model, loaded in the type it is stored in if no other is given.
        head: a head's kind, or its config.
        **options: fields of the head's config, such as `depth=3` (the default), where `head` is a
            kind; and where `model` is a name, how to load it, as in `MTPModel.from_pretrained`.

    Raises:
        BackboneError: the model lacks a property that heads need.
        InputError: the head is unknown or told something it cannot do, or there is no such model.
        CheckpointError: the model cannot be loaded.
    """
    if isinstance(model, MTPModel):
        raise InputError("an MTPModel has its heads already; give its lm to attach others.")
    settings = head_class(head).Config.model_fields if isinstance(head, str) else {}
    how = {name: options.pop(name) for name in LOADING & options.keys() - settings.keys()}
    if isinstance(head, str):
        head = new_heads({"kind": head, **options})
    elif options:
        raise HeadError(f"give {', '.join(options)} in the head's config, not beside it.")
    if isinstance(model, (str, Path)):
        loading = Loading.of("attach", model, how)
        lm = loading.load(loading.where)
        if loading.device is not None:
            lm.to(loading.device)  # type: ignore[arg-type]
        attached = MTPModel(lm, head)
        attached.backbone_path = attached.tokenizer_path = loading.where
    elif how:
        raise InputError(f"{', '.join(how)}: for loading a model, and one is given; load that so.")
    else:
        attached = MTPModel(model, head)
    warn_if_not_decoded(attached.backbone)
    return attached
