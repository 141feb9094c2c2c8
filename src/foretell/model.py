"""`MTPModel`: a backbone and a head, trained together and saved together.

Shapes: B batch, T time, K depths, D hidden, V vocabulary.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self, cast

import torch
from huggingface_hub import HfApi
from torch import Tensor, nn
from transformers import PreTrainedModel

from foretell.backbone import (
    Ability,
    BackboneOutput,
    fingerprint,
    rehearses,
    require_usable,
)
from foretell.backbone.weights import adapters_inside, cast_parameters
from foretell.checkpoints import (
    ADAPTERS_DIRECTORY,
    CONFIG_FILES,
    HEADS_FILE,
    Adapters,
    BackboneReference,
    StoredHeads,
    config_file,
    is_foretell_directory,
    load_causal_lm,
    read_heads,
    resolve,
    write_heads,
)
from foretell.decoding import store_by_rows
from foretell.decoding.cache import decodes, keeps_blocks
from foretell.errors import BackboneError, CheckpointError, HeadError, InputError
from foretell.files import local_path, replacing
from foretell.generation import Generating
from foretell.heads import FINAL, Head, HeadConfig, Parts, States, head_class
from foretell.objective import (
    BackboneTarget,
    MarginalTarget,
    Objective,
    ObjectiveConfig,
    Target,
    all_depths,
    depth_by_depth,
)
from foretell.targets import IGNORE, depth_targets, tokens_ahead

log = logging.getLogger(__name__)


@dataclass
class MTPOutput:
    """What a pass of the model returns.

    Attributes:
        loss: the weighted sum, a scalar.
        depth_losses: (K+1,) mean of -log p(token) at depths 0…K in nats, detached; also where a
            depth learns from a teacher.
        unembed: computes `logits`.
    """

    loss: Tensor
    depth_losses: Tensor
    unembed: Callable[[], Tensor] = field(repr=False)

    @property
    def logits(self) -> Tensor:
        """(B, T, V), the backbone's own; computed when asked for, since training needs none."""
        return self.unembed()


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
    """

    def __init__(self, model: PreTrainedModel, head: HeadConfig | None = None) -> None:
        super().__init__(model)
        self.backbone_trains = True
        self.adapters: Adapters | None = None
        self._base_fingerprint: str | None = None
        self.depth_by_depth = True
        self.head = None if head is None else self._build(head)

    def _build(self, config: HeadConfig) -> Head:
        parts = Parts(
            hidden_size=self.backbone.hidden_size,
            num_layers=self.backbone.num_layers,
            block=lambda: self.backbone.new_block(config.init, config.block),
            norm=self.backbone.new_norm,
            new_norm=self.backbone.fresh_norm,
        )
        head = head_class(config.kind)(config, parts).to(device=self.backbone.device)
        cast_parameters(head, self.backbone.dtype)
        if head.runs_blocks:
            self._check_blocks(head)
        return head

    def _check_blocks(self, head: Head) -> None:
        """Refuse a backbone whose blocks cannot be run as `head` has to run them."""
        rehearsed = rehearses(self.backbone)  # tried now, though some heads only ask when decoding
        able = rehearsed if head.runs_ahead else Ability()
        if able := able and keeps_blocks(self.backbone, head.runs_ahead):
            return
        other = "parallel or residual" if head.runs_ahead else "residual"
        raise BackboneError(
            f"{type(self.lm).__name__} cannot carry {head.config.kind} heads: {able.lacking}; "
            f"use {other} heads."
        )

    @property
    def depth(self) -> int:
        """K; 0 without a head."""
        return self.head.depth if self.head is not None else 0

    def require_head(self) -> Head:
        """The head, or an error that says how to get one."""
        if self.head is None:
            raise HeadError("the model has no heads; train some with `foretell train`.")
        return self.head

    def fingerprint(self) -> str:
        """Of the backbone, or of its base where adapters are inside."""
        return self._base_fingerprint or fingerprint(self.lm)

    def adapt(self, make: Callable[[PreTrainedModel], Adapters]) -> None:
        """Put adapters into the backbone, made by `make`; they are saved beside the heads.

        Raises:
            InputError: there are some already, or they adapt the embedding or the output head,
                which heads read directly.
        """
        if adapters_inside(self.lm) is not None:
            raise InputError(
                f"{type(self.lm).__name__} has adapters inside already; merge them first, or train "
                "them on with recipe native."
            )
        base, read = fingerprint(self.lm), (self.backbone.embedding, self.backbone.output)
        adapters = make(self.lm)
        if (self.backbone.embedding, self.backbone.output) != read:
            adapters.remove()
            raise InputError(
                "adapters on the embedding or the output head do not go with heads, which read "
                "both directly; leave them out of the targets."
            )
        self.adapters, self._base_fingerprint = adapters, base

    def merge_adapters(self) -> None:
        """Make the adapters part of the backbone, which then is an ordinary one."""
        if self.adapters is not None:
            self.adapters.merge()
        self.adapters = self._base_fingerprint = None

    def warn_if_not_decoded(self) -> None:
        """Log a warning where the model can be trained and not decoded in drafts."""
        if not (decoded := decodes(self.backbone)):
            log.warning(
                "%s can be trained with heads, but not decoded in drafts: %s",
                type(self.lm).__name__,
                decoded.lacking,
            )

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
        head = self.require_head()

        def run(block: nn.Module, hidden: Tensor, depth: int) -> Tensor:
            return output.call(block, hidden)

        def embed_ahead(distance: int) -> Tensor:
            ahead = self.backbone.embed(tokens_ahead(tokens, distance))
            if distance == 1 and head.zero_first:
                ahead = ahead.masked_fill(self._first(tokens, output).unsqueeze(-1), 0.0)
            return ahead

        states = states or {FINAL: output.final, **output.states}
        depths = range(1, self.depth + 1) if depths is None else depths
        return cast(list[Tensor], head(states, embed_ahead, run, depths))

    @staticmethod
    def _first(tokens: Tensor, output: BackboneOutput) -> Tensor:
        """(B, T) where a document begins, by the positions that the pass was given."""
        positions = output.positions
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)
        return (positions == 0).expand_as(tokens)

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

        Raises:
            HeadError: see `require_fit`.
            InputError: not one weight per depth, or no marginals where they are distilled.
        """
        self.require_fit()
        objective = objective or ObjectiveConfig()
        weights = list(objective.at(self.depth) if weights is None else weights)
        if len(weights) != self.depth + 1:
            raise InputError(
                f"{len(weights)} weights were given; depths 0 to {self.depth} take one each."
            )
        if not self.backbone_trains:
            weights[0] = 0.0
        output = trunk or self._trunk(input_ids, position_ids, attention_mask)
        if labels is None:
            seen = attention_mask
            labels = input_ids if seen is None else input_ids.masked_fill(seen == 0, IGNORE)
        targets = [
            Target(
                depth_targets(labels, depth, position_ids).flatten(),
                None if counts is None else counts[depth],
                self._soft_target(objective, depth, output, marginals),
                objective.distill_share,
            )
            for depth in range(self.depth + 1)
        ]
        loss, depth_losses = self._losses(input_ids, output, targets, weights)
        loss = loss + self.backbone.auxiliary_loss(output) / passes
        return MTPOutput(loss, depth_losses, partial(self.backbone.unembed, output.final))

    def _trunk(
        self, input_ids: Tensor, position_ids: Tensor | None, attention_mask: Tensor | None
    ) -> BackboneOutput:
        """The backbone's pass, with gradients where it learns."""
        with torch.set_grad_enabled(self.backbone_trains and torch.is_grad_enabled()):
            return self.backbone(
                input_ids,
                attention_mask=attention_mask,
                position_ids=position_ids,
                layers=self.layers,
                auxiliary=torch.is_grad_enabled(),
            )

    def _soft_target(
        self,
        objective: ObjectiveConfig,
        depth: int,
        output: BackboneOutput,
        marginals: Mapping[int, MarginalTarget] | None,
    ) -> BackboneTarget | MarginalTarget | None:
        if depth == 0 or objective.distill == "none":
            return None
        if objective.distill == "marginal":
            if marginals is None:
                raise InputError("an objective that distills marginals has to be given them.")
            return marginals[depth]
        final, unembed = output.final.detach(), self.backbone.unembed
        return BackboneTarget(final, depth, unembed, objective.temperature)

    def _losses(
        self,
        tokens: Tensor,
        output: BackboneOutput,
        targets: Sequence[Target],
        weights: Sequence[float],
    ) -> tuple[Tensor, Tensor]:
        """The weighted loss of all depths, and the unweighted nll of each (K+1,)."""
        layers = (FINAL, *self.layers)

        def compute(states: Sequence[Tensor], depths: Sequence[int]) -> list[Tensor]:
            by_layer = dict(zip(layers, states, strict=True))
            found = [by_layer[FINAL]] if 0 in depths else []
            deeper = [depth for depth in depths if depth > 0]
            return found + (self.depth_hidden(tokens, output, deeper, by_layer) if deeper else [])

        states = [output.final, *(output.states[layer] for layer in self.layers)]
        unembed, vocab_size = self.backbone.unembed, self.backbone.vocab_size
        alone = self.head is None or not self.head.chained
        deeper = range(1, self.depth + 1)
        groups = [[0], *([k] for k in deeper)] if alone else [[0], list(deeper)]
        work = Objective(compute, groups, targets, weights, unembed, vocab_size)
        in_order = self.depth_by_depth and torch.is_grad_enabled()
        if in_order and not output.call.requires_grad:
            return depth_by_depth(work, states, self._learning_beside_trunk())
        return all_depths(work, states)

    def _learning_beside_trunk(self) -> list[nn.Parameter]:
        """The parameters that a loss reaches without going through the trunk's states.

        Those of a backbone that rests are left out, also where they are to learn later.
        """
        resting = not self.backbone_trains
        tables = [] if resting else [self.backbone.embedding, self.backbone.output]
        parts = [*tables, *([] if self.head is None else [self.head])]
        found = {id(p): p for part in parts for p in part.parameters()}
        return [parameter for parameter in found.values() if parameter.requires_grad]

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
    ) -> Self:
        """Load a foretell directory, or a plain checkpoint without heads.

        Args:
            path: a directory, a Hub id, or the name of a bundled model.
            backbone: put the heads on this model, or the one that lies there, instead of the one
                they refer to; it must be the same one, by fingerprint.
            dtype: of the weights; "auto" is the type they are stored in. A backbone that is given
                has its own already.
            device: where to put the model.
            device_map: the same in transformers' words; `"auto"` is the first accelerator, or the
                CPU. Heads need their backbone on one device.

        Raises:
            CheckpointError: a file is missing, truncated or foreign, or the backbone is another
                one.
            InputError: there is no model at `path`, `dtype` is no type for one, or `device_map`
                spreads it.
        """
        device = _one_device(device, device_map)
        wanted = _weights_type(dtype, backbone)
        where = resolve(path)
        stored = read_heads(Path(where)) if is_foretell_directory(Path(where)) else None
        source, rounded = where, False
        if backbone is None or isinstance(backbone, (str, Path)):
            source = _backbone_of(where, stored, backbone)
            backbone = load_causal_lm(source, wanted)
            rounded = wanted == torch.float16  # more than the fingerprint does
        if stored is not None:
            other = rounded and fingerprint(backbone) != stored.backbone.fingerprint
            checked = load_causal_lm(source) if other else backbone
            _check_fingerprint(checked, stored.backbone, where)
        if device is not None:
            backbone.to(device)  # type: ignore[arg-type]
        try:
            model = cls(backbone, None if stored is None else _head_config(stored))
        except (InputError, HeadError) as error:
            raise CheckpointError(f"{config_file(Path(where))}: {error}") from None
        model.tokenizer_path = source
        if stored is not None:
            model.load_heads(stored, where)
            if stored.backbone.adapted:
                adapters = Path(where) / ADAPTERS_DIRECTORY
                model.adapt(lambda lm: Adapters.load(lm, adapters))
        return model.eval()

    def save_pretrained(
        self, path: str | Path, *, backbone_path: str | Path | None = None, tokenizer: Any = None
    ) -> None:
        """Write the model to a directory, all of it or nothing.

        Args:
            path: where to: a new or an empty directory, or one with heads that were saved to it,
                which are replaced; other files there stay.
            backbone_path: where the backbone can be loaded from: then only the heads are stored,
                with the full path of that directory, or the Hub id. None stores the backbone beside
                them, as an ordinary checkpoint.
            tokenizer: saved beside the backbone.

        Raises:
            CheckpointError: see `require_savable`.
        """
        self.require_savable(backbone_path)
        # What an earlier save left and this one does not write would not fit any more.
        superseded = [*CONFIG_FILES, HEADS_FILE, ADAPTERS_DIRECTORY]
        if backbone_path is None:
            superseded.append("model*.safetensors*")
        with replacing(Path(path), superseded, marks=CONFIG_FILES) as work:
            if backbone_path is None:
                store_by_rows(self.lm)  # others cannot be written
                self.lm.save_pretrained(work)
            if tokenizer is not None:
                tokenizer.save_pretrained(work)
            if self.head is not None:
                reference = BackboneReference(
                    self.fingerprint(),
                    type(self.lm).__name__,
                    _full_path(backbone_path),
                    adapted=self.adapters is not None,
                )
                stored = StoredHeads(self.head.config.to_dict(), reference, self.head.state_dict())
                write_heads(work, stored)
            if self.adapters is not None:
                self.adapters.save(work / ADAPTERS_DIRECTORY)

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
                `create_pr`, …

        Returns:
            the address of the commit.

        Raises:
            CheckpointError: see `require_savable`.
            InputError: `backbone_path` is a directory, which nobody else has.
        """
        if backbone_path is not None and local_path(backbone_path).exists():
            raise InputError(
                f"backbone_path is {backbone_path}, a directory of this machine; name the Hub id "
                "of the backbone, or leave it out to upload that too."
            )
        self.require_savable(backbone_path)
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as place:
            directory = Path(place) / "model"
            self.save_pretrained(directory, backbone_path=backbone_path, tokenizer=tokenizer)
            done = api.upload_folder(repo_id=repo_id, folder_path=directory, **options)
        return str(done.commit_url)

    def require_savable(self, backbone_path: str | Path | None = None) -> None:
        """Check that `save_pretrained` could write the model, and load it again.

        Raises:
            CheckpointError: there are adapters that it cannot save, or packed weights that
                transformers cannot.
        """
        kind, name = adapters_inside(self.lm), type(self.lm).__name__
        if kind is not None and self.adapters is None:
            raise CheckpointError(
                f"{name} was given adapters ({kind}) that are not saved with heads: put them in "
                "with MTPModel.adapt, or merge or remove them with the library that made them."
            )
        if backbone_path is not None:
            return
        if kind is not None:
            raise CheckpointError(
                "adapters are saved apart from their base: name its path, or merge them first."
            )
        quantizer = getattr(self.lm, "hf_quantizer", None)
        if self.backbone.packed_by and not (quantizer and quantizer.is_serializable()):
            raise CheckpointError(
                f"the packed weights of {name} ({self.backbone.packed_by}) cannot be saved beside "
                "heads: name the path that the backbone is loaded from."
            )

    def load_heads(self, stored: StoredHeads, where: str | Path) -> None:
        """Copy stored tensors into the head; every one must be there, fit, and be wanted."""
        own, given = self.require_head().state_dict(), stored.tensors or {}
        wrong = [
            f"{name} ({_shape(own.get(name))} expected, {_shape(given.get(name))} found)"
            for name in sorted(own.keys() | given.keys())
            if _shape(own.get(name)) != _shape(given.get(name))
        ]
        if wrong:
            raise CheckpointError(
                f"{where}: the heads do not fit their own config: {wrong[0]}"
                + (f" and {len(wrong) - 1} more." if len(wrong) > 1 else ".")
            )
        self.require_head().load_state_dict(given)


def _one_device(
    device: torch.device | str | None,
    device_map: str | int | torch.device | Mapping[str, Any] | None,
) -> torch.device | str | None:
    """The device that both name, or None."""
    if device_map is None:
        return device
    if device is not None:
        raise InputError("device and device_map say the same; give one of them.")
    places = list(device_map.values()) if isinstance(device_map, Mapping) else [device_map]
    spread = len(set(places)) != 1 or places[0] in ("disk", "meta")
    if spread or (isinstance(places[0], str) and places[0].startswith("balanced")):
        raise InputError(
            f"device_map is {device_map!r}; heads need their backbone on one device: name it, or "
            '"auto".'
        )
    if places[0] == "auto":
        found = torch.accelerator.is_available() and torch.accelerator.current_accelerator()
        return found or torch.device("cpu")
    return torch.device(places[0])


def _full_path(backbone_path: str | Path | None) -> str | None:
    """A directory's path as it holds from anywhere; a Hub id or a bundled model as it is."""
    if backbone_path is None:
        return None
    path = local_path(backbone_path)
    return str(path.absolute()) if path.is_dir() else str(backbone_path)


def _backbone_of(where: str, stored: StoredHeads | None, given: str | Path | None) -> str:
    """Where the backbone lies of the model at `where`; `given` goes before what its heads say."""
    if given is not None and stored is None:
        raise InputError(f"{where}: has no heads to put on the backbone at {given}.")
    if given is not None:
        return resolve(given)
    if stored is None or stored.backbone.path is None:
        return where
    try:
        return resolve(stored.backbone.path)
    except InputError as error:
        raise CheckpointError(
            f"{config_file(Path(where))}: its backbone, {stored.backbone.path}, is not found "
            f"({str(error).rstrip('.')}); say where it is now with --backbone, in Python "
            "backbone=, or in that file."
        ) from None


def _weights_type(dtype: torch.dtype | str, backbone: object) -> torch.dtype | None:
    """The type to load weights in; None where they stay as they are."""
    if isinstance(dtype, str) and dtype == "auto":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(f'dtype is {dtype!r}; give "auto" or a type such as torch.bfloat16.')
    if isinstance(backbone, PreTrainedModel) and backbone.dtype != found:
        raise InputError(
            f"dtype is {found}, and the backbone that is given has {backbone.dtype}; load it in "
            "the type wanted."
        )
    return found


def _check_fingerprint(
    lm: PreTrainedModel, reference: BackboneReference, where: str | Path
) -> None:
    require_usable(lm)
    found, architecture = fingerprint(lm), type(lm).__name__
    if (found, architecture) != (reference.fingerprint, reference.architecture):
        raise CheckpointError(
            f"{where}: its heads belong to a {reference.architecture} with fingerprint "
            f"{reference.fingerprint}, this backbone is a {architecture} with "
            f"fingerprint {found}; load the heads onto the backbone they were trained on."
        )


def _head_config(stored: StoredHeads) -> HeadConfig:
    """What to build, after a look at the tensors that are to fill it."""
    config = head_class(str(stored.head.get("kind", ""))).Config.from_dict(stored.head)
    if config.modules > len(stored.tensors or {}):
        raise HeadError(
            f"heads of depth {config.depth} have more modules than {HEADS_FILE} has tensors."
        )
    return config


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def attach(
    model: PreTrainedModel | str | Path, head: str | HeadConfig = "parallel", **options: Any
) -> MTPModel:
    """Put new heads on a causal language model.

    Where the model can then be trained and not decoded, a warning is logged.

    Args:
        model: any `AutoModelForCausalLM`, used as it is; or where one lies: a directory, a Hub id
            or a bundled model, loaded in the type it is stored in.
        head: a head's kind, or its config.
        **options: fields of the head's config, such as `depth=3`, where `head` is a kind.

    Raises:
        BackboneError: the model lacks a property that heads need.
        InputError: the head is unknown or told something it cannot do, or there is no such model.
        CheckpointError: the model cannot be loaded.
    """
    if isinstance(head, str):
        head = head_class(head).Config.from_dict(options)
    elif options:
        raise HeadError(f"give {', '.join(options)} in the head's config, not beside it.")
    if isinstance(model, (str, Path)):
        place = resolve(model)
        attached = MTPModel(load_causal_lm(place), head)
        attached.tokenizer_path = place
    else:
        attached = MTPModel(model, head)
    attached.warn_if_not_decoded()
    return attached
