"""Low-rank adapters on a backbone (LoRA: Hu et al. 2021, arXiv 2106.09685), by peft.

peft changes the model in place: the backbone stays the object that it was, with adapters inside.
Those that heads are trained with are ours to add, save and merge. A checkpoint that is adapters
alone, of any kind that can become part of weights, is merged when it is loaded.
"""

import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.peft_utils import find_adapter_config_file

from foretell.backbone import Backbone, fingerprint
from foretell.backbone.weights import adapters_inside
from foretell.errors import CheckpointError, ForetellError, InputError, not_installed

_WRAPPER = "(base_layer|modules_to_save|original_module|token_adapter)"
"""What peft puts around a layer, as it stands in names of tensors."""


@dataclass(frozen=True)
class Adapters:
    """Adapters inside a model.

    Attributes:
        peft_model: peft's wrapper around the model.
        base: the fingerprint of the model without them.
        learned: the model's own parameters that learned before, and do again without adapters.
    """

    peft_model: Any
    base: str
    learned: tuple[nn.Parameter, ...]

    @classmethod
    def add(
        cls,
        model: PreTrainedModel,
        *,
        rank: int,
        alpha: float,
        dropout: float,
        targets: str | list[str],
    ) -> "Adapters":
        """Put new adapters into `model`; from now on they learn, and nothing else of it.

        `all-linear` are all that multiply with a matrix and do no more.

        Raises:
            InputError: peft is not installed, or `targets` name nothing in the model, or what does
                more than multiply.
        """
        peft, doing_more = _peft(), list(_doing_more(model))
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=targets,
            exclude_modules=doing_more if targets == "all-linear" and doing_more else None,
            task_type="CAUSAL_LM",
        )
        if targets != "all-linear":
            _refuse_targets(config, doing_more)
        base, learned = fingerprint(model), _learning(model)
        try:
            with _quiet_peft():
                return cls(peft.get_peft_model(model, config), base, learned)
        except ValueError as error:
            reason = _one_line(error)
            raise InputError(f"adapters do not fit {type(model).__name__}: {reason}") from None

    @classmethod
    def load(cls, model: PreTrainedModel, path: Path) -> "Adapters":
        """Put the adapters saved at `path` into `model`; they learn, and nothing else of it.

        Raises:
            CheckpointError: they are missing or do not fit, or are no part of the model's layers.
        """
        peft, base, learned = _peft(), fingerprint(model), _learning(model)
        with _explained(path):
            kind = peft.PeftConfig.from_pretrained(str(path))
            if (beside := _beside_weights(kind)) is not None:
                raise ValueError(f"{beside} cannot become part of weights")
            with _quiet_peft():
                loaded = peft.PeftModel.from_pretrained(model, str(path), is_trainable=True)
                # Again, for what it says: tensors without a place are passed over in silence.
                result = loaded.load_adapter(str(path), loaded.active_adapter, is_trainable=True)
            unexpected = result.unexpected_keys
            if unexpected and (unplaced := _unplaced(unexpected, _read(path))):
                more = f" and {len(unplaced) - 1} more" if len(unplaced) > 1 else ""
                raise ValueError(f"the model has no place for {unplaced[0]}{more}")
        return cls(loaded, base, learned)

    def save(self, path: Path) -> None:
        """Write them, without their base, as peft does."""
        self.peft_model.save_pretrained(str(path), save_embedding_layers=False)

    def merge(self) -> None:
        """Add them to the weights and take them out: the model is an ordinary one again.

        Raises:
            CheckpointError: adapters of their kind cannot become part of weights.
        """
        try:
            with _quiet_peft():
                self.peft_model.merge_and_unload()
        except Exception as error:
            raise CheckpointError(f"adapters cannot be merged ({_one_line(error)}).") from None
        self.release()

    def remove(self) -> None:
        """Take them out of the model, which is as it was before."""
        self.peft_model.unload()
        self.release()

    def release(self) -> None:
        """Have the model's own parameters learn again, as they did before."""
        for parameter in self.learned:
            parameter.requires_grad_(True)


def _beside_weights(config: Any) -> str | None:
    """The kind of adapters where they are put beside the tokens; None where a layer holds them."""
    beside = config.is_prompt_learning or config.is_adaption_prompt
    return str(config.peft_type.value) if beside else None


def _doing_more(model: PreTrainedModel) -> Iterator[str]:
    """Names of layers that peft takes for a matrix, as their class is derived from one, and that
    give something else than a vector for a vector: routers that choose experts with it.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and type(layer).forward is not nn.Linear.forward:
            given = torch.ones(2, layer.in_features, dtype=model.dtype, device=layer.weight.device)
            try:
                with torch.no_grad():
                    shape = getattr(layer(given), "shape", None)
            except Exception:  # it raises whatever it likes
                shape = None
            if shape != (2, layer.out_features):
                yield name


def _refuse_targets(config: Any, doing_more: Sequence[str]) -> None:
    from peft.tuners.tuners_utils import check_target_module_exists

    for name in doing_more:
        if check_target_module_exists(config, name):
            raise InputError(
                f"adapters do not fit {name}, which does more than multiply with its matrix; leave "
                "it out of the targets."
            )


def insert_adapters(backbone: Backbone, make: Callable[[PreTrainedModel], Adapters]) -> Adapters:
    """Put adapters, made by `make`, into a backbone that heads read.

    Raises:
        InputError: there are some already, they adapt the embedding or the output head, or are no
            part of the model's layers.
    """
    lm = backbone.model
    if adapters_inside(lm) is not None:
        raise InputError(
            f"{type(lm).__name__} has adapters inside already; merge them first, or train them on "
            "with recipe native."
        )
    read = (backbone.embedding, backbone.output)
    adapters = make(lm)
    kinds = getattr(adapters.peft_model, "peft_config", {}).values()
    if (beside := next(filter(None, map(_beside_weights, kinds)), None)) is not None:
        adapters.release()
        raise InputError(
            f"{beside} cannot become part of weights, and the model says what it said without it; "
            "use adapters that can."
        )
    if (backbone.embedding, backbone.output) != read:
        adapters.remove()
        raise InputError(
            "adapters on the embedding or the output head do not go with heads, which read both "
            "directly; leave them out of the targets."
        )
    return adapters


def fit_vocabulary(model: PreTrainedModel, path: Path) -> None:
    """Give `model` as many tokens as the one had that the adapters at `path` were trained on.

    Where a base was given more tokens, or fewer, peft saves its embedding and output head whole.

    Raises:
        CheckpointError: the adapters cannot be read, or hold one of the two and not the other.
    """
    rows = _rows_held(model, path)
    own = model.get_input_embeddings().get_parameter("weight").shape[0]
    tokens = max(rows.values())
    if tokens in (0, own):
        return
    if missing := [name for name, held in rows.items() if held != tokens]:
        raise CheckpointError(
            f"{path}: the adapters were trained on {tokens} tokens and their base has {own}, but "
            f"they are without its {missing[0]}; save them with save_embedding_layers=True, or "
            "merge them with peft and load the result."
        )
    model.resize_token_embeddings(tokens, mean_resizing=False)  # every row comes with them


def _rows_held(model: PreTrainedModel, path: Path) -> dict[str, int]:
    """Of each parameter of embedding and output head, the rows of the one that adapters bring.

    0 where they bring none. What is wrapped keeps its name, with those of wrappers after it.
    """
    with _explained(path):
        held = _read(path)
    rows = {}
    names = {module: name for name, module in model.named_modules()}
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        for part, _ in () if table is None else table.named_parameters():
            name = f"{names[table]}.{part}"
            whole = re.compile(rf"(.*\.)?{re.escape(names[table])}(\.{_WRAPPER})*\.{part}")
            rows[name] = max((len(held[key]) for key in held if whole.fullmatch(key)), default=0)
    return rows


def _read(path: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = _peft().utils.load_peft_weights(str(path), device="cpu")
    return tensors


def _unplaced(names: Sequence[str], held: dict[str, Tensor]) -> list[str]:
    """Names that the model has no place for, except copies: peft writes some tensors twice."""
    placed = [tensor for name, tensor in held.items() if name not in names]
    return [
        name
        for name in names
        if name not in held or not any(torch.equal(held[name], tensor) for tensor in placed)
    ]


def base_of_adapters(where: str) -> str | None:
    """The model that the adapters at `where` (a directory or Hub id) belong on.

    None where something else lies there.

    Raises:
        CheckpointError: they do not say.
    """
    try:
        config = find_adapter_config_file(where)
    except OSError:  # of a Hub id: whoever loads the model says it better
        config = None
    if config is None:
        return None
    try:
        about = json.loads(Path(config).read_text(encoding="utf-8"))
        base, revision = about["base_model_name_or_path"], about.get("revision")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        base = revision = None
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"{config}: does not name the model that the adapters belong on "
            "(base_model_name_or_path); write its path there."
        )
    if revision not in (None, "", "main") and not Path(base).is_dir():
        raise CheckpointError(
            f"{config}: the adapters belong on revision {revision} of {base}, and only the newest "
            "is loaded by name; fetch that one to a directory and write its path there."
        )
    return base


def _learning(model: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(parameter for parameter in model.parameters() if parameter.requires_grad)


@contextmanager
def _quiet_peft() -> Iterator[None]:
    """Without what peft warns about about old names; missing tensors are an error here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*missing adapter keys")
        yield


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what peft raises into one line."""
    try:
        yield
    except ForetellError:  # peft is not installed
        raise
    except Exception as error:  # a broken file can break peft anywhere
        raise CheckpointError(
            f"{path}: adapters cannot be loaded ({_one_line(error)}); if they belong on another "
            "model, name it in adapter_config.json; if theirs was given other tokens, save them "
            "with save_embedding_layers=True; else merge them with peft and load the result."
        ) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise not_installed("peft", "train") from None
    return peft
