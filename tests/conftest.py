"""What every test shares: one thread, fixed seeds, small models, the data beside the checkout."""

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

import families
from alike import tried_once
from browser import Browser, open_chromium

torch.set_num_threads(1)
gc.set_threshold(5000)  # models come and go by thousands of objects

# Cores are busy and models slow, so no deadline; the same examples on every run.
settings.register_profile(
    "foretell",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("foretell")


def pytest_collection_finish() -> None:
    """Take what was imported out of garbage collection, which accelerate starts with every run."""
    gc.freeze()


SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from the same random state and leaves none behind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run makes its figures and leaves their files empty: to draw takes longer than to learn."""
    report = sys.modules.get("foretell.training.report")
    if report and "pictures" not in request.fixturenames:
        monkeypatch.setattr(report, "_save", lambda figure, path: path.touch())


@pytest.fixture(autouse=True)
def _no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run is advised to try depends on the machine."""
    if hardware := sys.modules.get("foretell.hardware"):
        monkeypatch.setattr(hardware, "QUICK", 0.0)


@pytest.fixture
def pictures() -> None:
    """For tests that look at what a run draws."""


@pytest.fixture
def _tried_once() -> Iterator[None]:
    """For tests of something else than what models can do: most load one small model or another."""
    with tried_once():
        yield


@pytest.fixture
def _short_sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of something else than loops, for which a comparison decodes many more tokens."""
    monkeypatch.setattr("foretell.evaluation.speed.LOOK_AHEAD", 8)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The commands quieten transformers for the whole process."""
    verbosity = transformers_logging.get_verbosity()
    yield
    transformers_logging.set_verbosity(verbosity)
    transformers_logging.enable_progress_bar()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The shared data folder; tests that need it are marked `data`."""
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data beside the checkout")
    return SHARED_DATA


@pytest.fixture(scope="module")  # no longer: its event loop would run on in other tests
def chromium() -> Iterator[Browser]:
    """A headless Chromium; skipped without one, unless FORETELL_REQUIRE_BROWSER is set."""
    with open_chromium() as browser:
        yield browser


@pytest.fixture
def llama() -> PreTrainedModel:
    """A new Llama of 4 layers that a test may change."""
    return families.build("llama")


@pytest.fixture
def small_llama() -> PreTrainedModel:
    """A smaller Llama as transformers initialises it, for training: 2 layers, 32 wide, tied."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=48,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
        )
        return LlamaForCausalLM(config).eval()
