"""The gate/up GEMM in clusters of 2, 3, 4 and 8 blocks that share their loads of tokens: device ms of a prefill.

5 ms apart (median), and back to back (mean of the last 140 of 200 replays); the ways take turns in changing order.

    python clusters.py 50 100 150 200 240
"""

import random
import statistics
import sys
import time
from dataclasses import replace

import torch

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels.hopper import HopperKernels, limits_on
from hybridgraph.model import load_model

ROUNDS, CLUSTERS = 4, (2, 3, 4, 8)

device = torch.device("cuda")
loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
ids = torch.randint(32000, (512,), device=device)
start = torch.zeros(1, dtype=torch.long, device=device)
last = torch.zeros(1, dtype=torch.long, device=device)
logits = torch.empty(32000, dtype=torch.float16, device=device)


class Clustered(HopperKernels):
    def __init__(self, cluster):
        super().__init__(limits_on(torch.cuda.get_device_name()))
        self._cluster = cluster

    def _swiglu(self, num_rows, gate_up):
        found = super()._swiglu(num_rows, gate_up)
        return found and replace(found, tile=replace(found.tile, cluster=self._cluster))


def timed(graph):
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def captured(cluster, n):
    """A graph, and what it needs to live: graphs do not hold the cache; and the logits it leaves."""
    forward = FusedForward(loaded.module, Clustered(cluster))
    cache = forward.allocate_cache(512)
    forward.prepare([n])
    forward.prefill(ids, n, start, last, cache, logits)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forward.prefill(ids, n, start, last, cache, logits)
    graph.replay()
    return graph, forward, cache, logits.clone()


def compared(n):
    last.fill_(n - 1)
    graphs = {cluster: captured(cluster, n) for cluster in CLUSTERS}
    assert all(torch.equal(graphs[2][3], graph[3]) for graph in graphs.values()), "logits differ"
    apart, rows = {way: [] for way in graphs}, {way: [] for way in graphs}
    for _ in range(ROUNDS):
        for way in random.sample(CLUSTERS, len(CLUSTERS)):
            graph = graphs[way][0]
            for i in range(12):
                took = timed(graph)
                time.sleep(0.005)
                if i >= 3:
                    apart[way].append(took)
        for way in random.sample(CLUSTERS, len(CLUSTERS)):
            rows[way].append(statistics.mean([timed(graphs[way][0]) for _ in range(200)][60:]))
    for way in CLUSTERS:
        print(
            f"{n:4} tokens, clusters of {way}: apart {statistics.median(apart[way]):.3f}"
            f"  back to back {statistics.median(rows[way]):.3f} ({min(rows[way]):.3f} to {max(rows[way]):.3f})",
            flush=True,
        )


print(torch.cuda.get_device_name(), flush=True)
with torch.inference_mode():
    for argument in sys.argv[1:]:
        compared(int(argument))
