"""Training: recipes, optimisers, and one run from settings to a saved model."""

from foretell.training.building import build, read_training_text, reference
from foretell.training.config import TrainConfig
from foretell.training.plan import Plan
from foretell.training.progress import Progress
from foretell.training.running import TrainResult, train

__all__ = [
    "Plan",
    "Progress",
    "TrainConfig",
    "TrainResult",
    "build",
    "read_training_text",
    "reference",
    "train",
]
