"""Decoding with a model: our own words, and those of transformers' `generate`."""

from foretell.generation.generating import Generating, modes_kept
from foretell.generation.options import GenerateOptions, StreamOptions

__all__ = ["GenerateOptions", "Generating", "StreamOptions", "modes_kept"]
