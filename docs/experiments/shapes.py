"""Which GEMMs serve prompts of other models than Llama-2-7B best: device ms of a replayed prefill, back to back.

python docs/experiments/shapes.py [NAME:LENGTH,LENGTH ...]

Variants are measured in turns, five rows of 40 replays each; the median row is shown. Random weights.
"""

import sys
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels.hopper import HopperKernels, limits_on
from hybridgraph.forward.kernels.triton import TritonKernels

LIMITS = limits_on(torch.cuda.get_device_name())
POSITIONS = 2048


def shape(kind: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int) -> dict[str, object]:
    return {
        "model_type": kind, "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocab,
    }  # fmt: skip


SHAPES = {
    "smollm2-135m": shape("llama", 576, 1536, 30, 9, 3, 49152),
    "qwen2.5-0.5b": shape("qwen2", 896, 4864, 24, 14, 2, 151936),
    "llama-3.2-1b": shape("llama", 2048, 8192, 16, 32, 8, 128256),
    "llama-3-8b, 8 layers": shape("llama", 4096, 14336, 8, 32, 8, 128256),
    "llama-2-7b, 8 layers": shape("llama", 4096, 11008, 8, 32, 32, 32000),
}


def variants() -> dict[str, TritonKernels]:
    return {"cuBLAS": TritonKernels(), "as is": HopperKernels(LIMITS)}


def build(name: str) -> PreTrainedModel:
    config = AutoConfig.for_model(**SHAPES[name], max_position_embeddings=POSITIONS)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(1.0, 0.1) if parameter.dim() == 1 else parameter.normal_(0.0, 0.02)
    return model


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def row_ms(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(5):
        graph.replay()
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / replays


@torch.inference_mode()
def measure(name: str, lengths: list[int]) -> None:
    model = build(name)
    logits = torch.empty(model.config.vocab_size, dtype=torch.float16, device="cuda")
    start, token, position = (torch.tensor([n], device="cuda") for n in (0, 5, 300))
    print(name, "(median of five rows, ms)", flush=True)
    for length in lengths:
        ids = torch.randint(1000, (length,), device="cuda")
        last = torch.tensor([length - 1], device="cuda")
        graphs, caches, rows = {}, [], {}
        for variant, kernels in variants().items():
            forward = FusedForward(model, kernels)
            cache = forward.allocate_cache(POSITIONS)
            caches.append(cache)  # what a graph reads has to live as long as it does
            graphs[variant] = captured(partial(forward.prefill, ids, length, start, last, cache, logits))
            rows[variant] = []
        for _ in range(5):
            for variant, graph in graphs.items():
                rows[variant].append(row_ms(graph, 40))
                assert logits.isfinite().all(), variant
        shown = "  ".join(f"{variant} {median(found):.3f}" for variant, found in rows.items())
        print(f"  {length:4d}: {shown}", flush=True)
    forward = FusedForward(model, HopperKernels(LIMITS))
    cache = forward.allocate_cache(POSITIONS)
    graph = captured(lambda: forward.decode(token, position, cache, logits))
    print(f"  decode at 300: {median(row_ms(graph, 40) for _ in range(5)):.3f}")


def main() -> None:
    print(torch.cuda.get_device_name())
    default = [f"{name}:10,50,100,200,300,400" for name in SHAPES]
    for name, lengths in (argument.split(":") for argument in sys.argv[1:] or default):
        measure(name, [int(length) for length in lengths.split(",")])


if __name__ == "__main__":
    main()
