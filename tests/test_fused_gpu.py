"""The fused forward in half precision on a GPU: as close to the float32 reference as the module's own forward is."""

import random
from collections.abc import Callable
from statistics import median

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.models.loading import load_model

pytestmark = pytest.mark.gpu

Ids = Callable[[int, int], list[int]]

# The layer of Llama-2-7B; then grouped heads, biases, head norms and a head size that is no power of two.
SHAPES: dict[str, dict[str, object]] = {
    "llama-7b-layers": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "qwen2": {
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 1888,
        "num_hidden_layers": 3,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "qwen3": {
        "model_type": "qwen3",
        "hidden_size": 384,
        "intermediate_size": 1000,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 48,
    },
}
VOCAB = 32000
POSITIONS = 512
PROMPTS = 8  # compared together: of a single one, the module's own error may be the lesser by chance


@pytest.fixture(scope="module", params=SHAPES)
def models(request: pytest.FixtureRequest) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The same fresh random weights in float16 and, exactly, in float32."""
    config = AutoConfig.for_model(**SHAPES[request.param], vocab_size=VOCAB, max_position_embeddings=POSITIONS)
    with torch.device("cuda"):
        half = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval().requires_grad_(False)
        full = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for parameter in half.parameters():
        parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.1 if parameter.dim() == 1 else 0.03)
        parameter.copy_(parameter.bfloat16())  # as released models are, so that they can be packed
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    return half, full


@pytest.fixture(params=["plain", "packed"])
def opened(request: pytest.FixtureRequest, models: tuple[PreTrainedModel, PreTrainedModel]) -> FusedForward:
    """The fused forward over the half-precision weights, plain and packed."""
    if request.param == "packed" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("packed weights are for Hopper GPUs")
    return FusedForward(models[0], weights=request.param)


def error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


class Buffers:
    """What the engine owns: one request's static inputs, cache and logits, poisoned."""

    def __init__(self, forward: FusedForward, ids: list[int], padded_to: int) -> None:
        padding = torch.randint(VOCAB, (padded_to - len(ids),)).tolist()
        self.ids = torch.tensor(ids + padding, device="cuda")
        self.start, self.last = (torch.tensor([at], device="cuda") for at in (0, len(ids) - 1))
        self.cache = forward.allocate_cache(POSITIONS)
        self.logits = torch.empty(forward._weights.head.shape[0], dtype=torch.float16, device="cuda")
        self.poison()

    def hold(self, ids: list[int]) -> None:
        """Another prompt of the same length."""
        self.ids[: len(ids)] = torch.tensor(ids)
        self.poison()

    def poison(self) -> None:
        """What no one wrote must not be read."""
        for tensor in (self.cache.keys, self.cache.values, self.logits):
            tensor.fill_(torch.nan)

    def prefill(self, forward: FusedForward, length: int | None = None) -> Tensor:
        forward.prefill(self.ids, length or self.ids.numel(), self.start, self.last, self.cache, self.logits)
        return self.logits.clone()


def reference(models: tuple[PreTrainedModel, PreTrainedModel], prompts: list[list[int]]) -> tuple[Tensor, float]:
    """The last positions' logits in float32 [prompts, vocab], and the error of the module's own half precision."""
    own, expected = (
        torch.stack([model(torch.tensor([ids], device="cuda"), logits_to_keep=1).logits[0, 0] for ids in prompts])
        for model in models
    )
    return expected, min(1e-2, error(own, expected))


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 2, 10, 63, 64, 65, 137, 400])
def test_prefill_is_as_exact_as_the_module(
    models: tuple[PreTrainedModel, PreTrainedModel], opened: FusedForward, length: int, random_ids: Ids
) -> None:
    prompts = [random_ids(length, VOCAB) for _ in range(PROMPTS)]
    expected, limit = reference(models, prompts)
    forward = opened
    for padded_to in (length, length + 13):
        buffers = Buffers(forward, prompts[0], padded_to)
        graph = captured(lambda buffers=buffers: buffers.prefill(forward))
        eager, replayed = [], []
        for ids in prompts:
            buffers.hold(ids)
            eager.append(buffers.prefill(forward))
            buffers.poison()
            graph.replay()
            replayed.append(buffers.logits.clone())
        assert error(torch.stack(eager), expected) <= limit
        assert torch.equal(torch.stack(replayed), torch.stack(eager))


@torch.inference_mode()
@pytest.mark.parametrize("length", [2, 65, 137, 400])
def test_prefill_in_pieces_is_as_exact_as_the_module(
    models: tuple[PreTrainedModel, PreTrainedModel], opened: FusedForward, length: int, random_ids: Ids
) -> None:
    """Two graphs, cut anywhere, the second one padded."""
    prompts = [random_ids(length, VOCAB) for _ in range(PROMPTS)]
    expected, limit = reference(models, prompts)
    forward = opened
    buffers = Buffers(forward, prompts[0], length + 13)
    cut = random.randint(1, length - 1)
    pieces = [(0, cut, cut - 1), (cut, length + 13 - cut, length - 1)]
    buffers.last.zero_()  # inside of either, while they are captured
    graphs = [captured(lambda size=size: buffers.prefill(forward, size)) for _, size, _ in pieces]
    logits = []
    for ids in prompts:
        buffers.hold(ids)
        for graph, (start, _, last) in zip(graphs, pieces, strict=True):
            buffers.start.fill_(start)
            buffers.last.fill_(last)
            graph.replay()
        logits.append(buffers.logits.clone())
    assert error(torch.stack(logits), expected) <= limit


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 60, 300])
def test_decoding_by_one_graph_follows_the_reference(
    models: tuple[PreTrainedModel, PreTrainedModel], opened: FusedForward, length: int, random_ids: Ids
) -> None:
    """Thirty given tokens: the logits after each are those of the whole sequence in float32."""
    half, full = models
    ids = random_ids(length + 30, VOCAB)
    whole = torch.tensor([ids], device="cuda")
    expected, own = full(whole).logits[0, length:], half(whole).logits[0, length:]
    forward = opened
    buffers = Buffers(forward, ids[:length], length + 5)
    token, position = torch.zeros(1, dtype=torch.long, device="cuda"), torch.zeros(1, dtype=torch.long, device="cuda")
    graph = captured(lambda: forward.decode(token, position, buffers.cache, buffers.logits))
    buffers.prefill(forward)
    logits = torch.empty_like(own)
    for step in range(30):
        token.fill_(ids[length + step])
        position.fill_(length + step)
        buffers.logits.fill_(torch.nan)
        graph.replay()
        logits[step] = buffers.logits
        assert error(logits[step], expected[step]) <= 1.25 * error(own[step], expected[step])
    assert error(logits, expected) <= min(1e-2, error(own, expected))


@torch.inference_mode()
def test_a_trained_model_is_as_exact_as_the_module(smollm2: str, random_ids: Ids) -> None:
    """By the median of many prompts: trained weights amplify the rounding of a few, the module's and the kernels'."""
    half, full = (
        load_model(smollm2, load_format="auto", dtype=dtype, device=torch.device("cuda"), seed=0).module
        for dtype in ("float16", "float32")
    )
    full.load_state_dict({name: value.float() for name, value in half.state_dict().items()})
    prompts = [random_ids(40, VOCAB) for _ in range(96)]
    expected, own = (
        [model(torch.tensor([ids], device="cuda"), logits_to_keep=1).logits[0, 0] for ids in prompts]
        for model in (full, half)
    )
    forward = FusedForward(half)
    buffers = Buffers(forward, prompts[0], 48)
    graph = captured(lambda: buffers.prefill(forward))
    answers = []
    for ids in prompts:
        buffers.hold(ids)
        graph.replay()
        answers.append(buffers.logits.clone())
    owns, errors = (median(map(error, logits, expected)) for logits in (own, answers))
    assert errors <= min(1e-2, 1.5 * owns)
