"""A decode step of the Llama-2-7B shape at a context of 512, its matrices plain and packed: device ms, and how exact.

python packed_decode.py
"""

import random
import statistics
import time

import torch

from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.models.loading import load_model

ROUNDS, REPLAYS, POSITIONS = 7, 60, 512
device = torch.device("cuda")


def captured(work):
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def timed(graph, replays):
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(replays):
        graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / replays


def error(actual, expected):
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def main():
    loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
    print(torch.cuda.get_device_name(), flush=True)
    forwards, graphs, logits, caches = {}, {}, {}, {}
    token = torch.zeros(1, dtype=torch.long, device=device)
    position = torch.full((1,), POSITIONS - 1, device=device)
    for weights in ("plain", "packed"):
        begin = time.perf_counter()
        forwards[weights] = FusedForward(loaded.module, weights=weights)
        torch.cuda.synchronize()
        print(
            f"{weights}: opened in {time.perf_counter() - begin:.2f} s, {torch.cuda.memory_allocated() / 1e9:.1f} GB",
            flush=True,
        )
        logits[weights] = torch.empty(32000, dtype=torch.float16, device=device)
    cache = forwards["plain"].allocate_cache(POSITIONS)
    cache.keys.normal_()
    cache.values.normal_()
    begin = time.perf_counter()
    for weights, forward in forwards.items():
        graphs[weights] = captured(lambda forward=forward, w=weights: forward.decode(token, position, cache, logits[w]))
    print(f"captured in {time.perf_counter() - begin:.2f} s", flush=True)
    for title, pause in (("back to back", 0), ("5 ms apart", 0.005)):
        took = {weights: [] for weights in graphs}
        for _ in range(ROUNDS):
            for weights, graph in graphs.items():
                if pause:
                    for _ in range(12):
                        time.sleep(pause)
                        took[weights].append(timed(graph, 1))
                else:
                    took[weights].append(timed(graph, REPLAYS))
        plain, packed = (statistics.median(took[w]) for w in ("plain", "packed"))
        print(
            f"decode, {title}: {plain:.3f} -> {packed:.3f} ms ({packed / plain:.3f}); {sorted(took['packed'])[:3]}",
            flush=True,
        )
    ids = torch.tensor([[random.randrange(32000) for _ in range(33)]], device=device)
    start, last = torch.zeros(1, dtype=torch.long, device=device), torch.tensor([31], device=device)
    answers = {}
    for weights, forward in forwards.items():
        cache.keys.zero_()
        cache.values.zero_()
        forward.prefill(ids[0], 32, start, last, cache, logits[weights])
        first = logits[weights].clone()
        forward.decode(ids[0, 32:], torch.tensor([32], device=device), cache, logits[weights])
        answers[weights] = (first, logits[weights].clone())
    torch.cuda.synchronize()
    own = loaded.module(ids).logits[0, -2:].clone()
    loaded.module.float()
    exact = loaded.module(ids).logits[0, -2:]
    for weights, answer in answers.items():
        print(
            f"{weights}: error of the prefill {error(answer[0], exact[0]):.2e}, of the step {error(answer[1], exact[1]):.2e}"
        )
    print(f"module in float16: {error(own[0], exact[0]):.2e}, {error(own[1], exact[1]):.2e}", flush=True)


with torch.inference_mode():
    main()
