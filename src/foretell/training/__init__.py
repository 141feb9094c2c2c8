"""Training: recipes, optimisers, and one run from settings to a saved model."""

from foretell.training.config import TrainConfig
from foretell.training.plan import Plan
from foretell.training.progress import Progress
from foretell.training.trainer import TrainResult, train

__all__ = ["Plan", "Progress", "TrainConfig", "TrainResult", "train"]
