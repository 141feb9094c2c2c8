"""What a layout's engines do with a head: a wrong choice does not fail, it only lowers acceptance.

Every layout declares its contract. `foretell train --for LAYOUT` trains heads under it, and an
export refuses heads that were trained under another one.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any

from foretell.heads import SequentialHeads, head_class
from foretell.heads.base import HeadConfig
from foretell.heads.sequential import Norms, Recycle, Rollout


@dataclass(frozen=True, kw_only=True)
class Contract(ABC):
    """How an engine runs heads.

    Attributes:
        engine: whose behaviour this is, with the release that was read.
        tap: the hidden state that depth 1 reads, as the backbone has it.
        depths: how many tokens the engine drafts.
        vocabulary: whether heads can draft some of the tokens alone.
    """

    engine: str
    tap: str = "final"
    depths: str
    vocabulary: bool = False

    @abstractmethod
    def head(self, depth: int) -> HeadConfig:
        """Heads trained under this contract."""

    def differences(self, config: HeadConfig, plain_norms: bool) -> list[str]:
        """What heads of `config` were trained for that the engine does not do.

        Args:
            config: of the heads.
            plain_norms: whether the backbone's norms are what `norms="own"` has.
        """
        found = self._differences(config, plain_norms)
        if config.vocabulary is not None and not self.vocabulary:
            found.append(f"its heads draft any token, and these {config.vocabulary:,} tokens alone")
        return found

    @abstractmethod
    def _differences(self, config: HeadConfig, plain_norms: bool) -> list[str]:
        """The same, but for the tokens that are drafted."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, to be stated beside what was exported."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True)
class SideBySide(Contract):
    """Heads that read one hidden state each and know nothing of one another.

    Attributes:
        heads: their kind.
        concat: they read no embedding.
    """

    heads: str
    concat: str = "none: heads read the hidden state alone"
    depths: str = "up to the number of heads"

    def head(self, depth: int) -> HeadConfig:
        return head_class(self.heads).Config.from_dict({"depth": depth, "tap": self.tap})

    def _differences(self, config: HeadConfig, plain_norms: bool) -> list[str]:
        if config.kind != self.heads:
            return [f"it runs {self.heads} heads, and these are {config.kind}"]
        if config.tap != self.tap:
            return [f"its heads read the state {self.tap!r}, and these read {config.tap!r}"]
        if (variant := getattr(config, "variant", "")) in ("causal", "anticausal"):
            return [f"its heads stand side by side, and these are {variant}"]
        return []


@dataclass(frozen=True, kw_only=True)
class Chain(Contract):
    """Modules, each of which reads what the one before it handed on, and the next embedding.

    Attributes:
        concat: the order of the projection's two inputs.
        recycle: what a further step reads.
        zero_first: whether the embedding at position 0 is zeros.
        norms: of the two inputs.
        block: of the module.
        modules: `"one"`, run for every step, or one per `"depth"`.
        rollout: whose past a further step continues.
    """

    concat: str
    recycle: Recycle = "normed"
    zero_first: bool = False
    norms: Norms = "backbone"
    block: str = "same"
    modules: str = "one"
    rollout: Rollout = "token"
    depths: str = "as many as asked for, with the one module"

    def head(self, depth: int) -> SequentialHeads.Config:
        return SequentialHeads.Config.from_dict(
            {
                "depth": depth,
                "tap": self.tap,
                "normalize": False,
                "block": self.block,
                "shared": self.modules == "one",
                "norms": self.norms,
                "recycle": self.recycle,
                "zero_first": self.zero_first,
                "rollout": self.rollout,
            }
        )

    def _differences(self, config: HeadConfig, plain_norms: bool) -> list[str]:
        if not isinstance(config, SequentialHeads.Config):
            return [f"it runs a sequential module, and these heads are {config.kind}"]
        wanted = self.head(config.depth)
        names = ["tap", "block", "norms", "zero_first"]
        names += ["shared", "recycle"] if config.depth > 1 else []
        # The scale of one state is undone by the module's norm; that of several is not.
        names += ["normalize"] if wanted.tap == "fused" else []
        own = plain_norms and (wanted.norms, config.norms) == ("backbone", "own")
        return [
            f"{name} is {getattr(wanted, name)!r} there and {getattr(config, name)!r} here"
            for name in names
            if getattr(wanted, name) != getattr(config, name) and not (name == "norms" and own)
        ]
