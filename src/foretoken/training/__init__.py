"""Training: recipes, optimisers, and one run from settings to a saved model."""

from foretoken.training.config import TrainConfig
from foretoken.training.progress import Progress
from foretoken.training.trainer import TrainResult, train

__all__ = ["Progress", "TrainConfig", "TrainResult", "train"]
