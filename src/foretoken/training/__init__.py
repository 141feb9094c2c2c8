"""Training: recipes, optimisers, and one run from settings to a saved model."""

from foretoken.training.config import TrainConfig
from foretoken.training.trainer import Progress, TrainResult, train

__all__ = ["Progress", "TrainConfig", "TrainResult", "train"]
