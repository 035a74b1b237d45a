"""What energy allows under the power cap: of the chip at rest, of reading, of multiplying, and of the custom GEMM.

Every figure is of replays in a row: 0.6 s to settle, then 1.5 s; J by the driver's counter of energy.

    python energy.py
"""

import statistics
import time
from pathlib import Path

import pynvml
import torch

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import gemm
from hybridgraph.forward.kernels.gemm import Gemm, Tile
from hybridgraph.forward.kernels.hopper import HopperKernels, limits_on
from hybridgraph.model import load_model

SETTLE_S, MEASURE_S, ROUNDS = 0.6, 1.5, 2
LAYERS, WIDTH, INNER = 32, 22016, 4096

pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
device = torch.device("cuda")
original_source, original_map = gemm.SOURCE, gemm._weight_map


def captured(work):
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph


def sustained(graph):
    """Seconds of a replay, W, and the clock at the end."""
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    estimate = max(before.elapsed_time(after) / 1e3, 1e-6)
    for _ in range(int(SETTLE_S / estimate) + 1):
        graph.replay()
    torch.cuda.synchronize()
    count = int(MEASURE_S / estimate) + 1
    energy, began = pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), time.perf_counter()
    clock = 0
    for i in range(count):
        graph.replay()
        if i == count // 2:
            clock = pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
    torch.cuda.synchronize()
    spent = time.perf_counter() - began
    watts = (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) - energy) / 1e3 / spent
    return spent / count, watts, clock


def told(name, graphs, per=1):
    """In turns; each graph holds ``per`` of what is told."""
    found = {way: [] for way in graphs}
    for _ in range(ROUNDS):
        for way, graph in graphs.items():
            found[way].append(sustained(graph))
    for way, rows in found.items():
        seconds, watts = (statistics.mean(row[i] for row in rows) for i in (0, 1))
        spread = max(row[0] for row in rows) / min(row[0] for row in rows) - 1
        print(
            f"{name:24} {way:12} {seconds / per * 1e6:9.2f} µs  {watts:5.0f} W  {watts * seconds / per * 1e3:8.2f} mJ"
            f"  {rows[-1][2]:5} MHz  rounds differ by {100 * spread:.1f} %",
            flush=True,
        )
    return {way: statistics.mean(row[0] for row in rows) / per for way, rows in found.items()}


def chip():
    told("awake", {"one thread": captured(lambda: torch.cuda._sleep(2_000_000))})
    big = torch.randn(1 << 30, device=device, dtype=torch.float16).view(torch.float32)
    out = torch.empty((), device=device)
    big.nan_to_num_(0.0, 0.0, 0.0)
    seconds = told("read 2 GiB", {"in order": captured(lambda: torch.sum(big, 0, out=out))})["in order"]
    print(f"  {big.numel() * 4 / seconds / 1e9:.0f} GB/s")
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.float16) for _ in range(2))
    c = torch.empty_like(a)
    seconds = told("8192 x 8192 x 8192", {"cuBLAS": captured(lambda: torch.mm(a, b.t(), out=c))})["cuBLAS"]
    print(f"  {2 * 8192**3 / seconds / 1e12:.0f} TFLOP/s")


def memory_or_cache():
    """The same GEMM, its weights from memory or from the L2 cache: what reading memory costs under the cap."""
    for tokens, width, inner in ((384, 11264, 768), (512, 8448, 1024), (768, 5632, 1024), (1536, 2816, 1024)):
        count = 48
        weights = torch.randn(count, width, inner, device=device, dtype=torch.float16) * 0.02
        rows = torch.randn(tokens, inner, device=device, dtype=torch.float16)
        out = torch.empty(tokens, width, device=device, dtype=torch.float16)

        def work(stride, weights=weights, rows=rows, out=out, count=count):
            for i in range(count):
                torch.mm(rows, weights[i * stride].t(), out=out)

        ways = {"memory": captured(lambda: work(1)), "cache": captured(lambda: work(0))}
        seconds = told(f"{tokens} x {width} x {inner}", ways, per=count)
        more = seconds["memory"] - seconds["cache"]
        gigabytes = width * inner * 2 / 1e9
        rate = 2 * tokens * width * inner / seconds["cache"] / 1e12
        print(f"  {rate:.0f} TFLOP/s from the cache; memory: {more / gigabytes * 1e3:.4f} ms a GB")


def tiled_map(address, shape, dtype, interleaved):
    rows, columns = shape
    return gemm._tensor_map(
        address,
        dtype,
        sizes=(64, 64, columns // 64, rows // 64),
        strides=(64, 4096, 64 * columns),
        box=(64, 64, 1, 1),
    )


def changed(name, replacements):
    text = original_source.read_text()
    for old, new in replacements:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = Path(f"/tmp/gemm_{name}.cu")
    path.write_text(text)
    return path


SOURCES = {
    "as it is": original_source,
    "cluster 4": original_source,
    "tiled": changed(
        "tiled",
        [
            ("{%2, %3, %3, %4}", "{%3, %3, %2, %4}"),
            ('"r"(4 * unit)', '"r"(unit)'),
            (
                "ring.full + 8 * stage, (first_step + step) * BLOCK_K,\n                blockIdx.x",
                "ring.full + 8 * stage, first_step + step,\n                blockIdx.x",
            ),
        ],
    ),
    "evict normal": changed("evict", [("EVICT_FIRST = 0x12F0000000000000", "EVICT_FIRST = 0x1000000000000000")]),
}


def custom_gemm(weights):
    for tokens in (16, 104, 152, 200, 240):
        rows = torch.randn(tokens, INNER, device=device, dtype=torch.float16)
        out = torch.empty(tokens, WIDTH // 2, device=device, dtype=torch.float16)
        graphs = {}
        for way, source in SOURCES.items():
            gemm.SOURCE = source
            gemm._weight_map = tiled_map if way == "tiled" else original_map
            gemm._kernel.cache_clear()
            cluster = 4 if way == "cluster 4" else 2 if tokens >= 32 else 1
            launch = Gemm("store_swiglu", Tile(3, tokens, cluster))

            def work(launch=launch, rows=rows, out=out):
                for weight in weights:
                    launch(rows, weight, out, overlap=True)

            graphs[way] = captured(work)
        told(f"gate/up, {tokens}", graphs, per=len(weights))
    gemm.SOURCE, gemm._weight_map = original_source, original_map
    gemm._kernel.cache_clear()


def prefills():
    loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
    ids = torch.randint(32000, (512,), device=device)
    start = torch.zeros(1, dtype=torch.long, device=device)
    last = torch.zeros(1, dtype=torch.long, device=device)
    logits = torch.empty(32000, dtype=torch.float16, device=device)
    forward = FusedForward(loaded.module, HopperKernels(limits_on(torch.cuda.get_device_name())))
    cache = forward.allocate_cache(512)
    lengths = (10, 50, 100, 150, 200, 250, 300, 350, 400)
    forward.prepare(lengths)
    for n in lengths:
        last.fill_(n - 1)
        told(f"prefill, {n}", {"fused": captured(lambda n=n: forward.prefill(ids, n, start, last, cache, logits))})
    print("finite", bool(logits.isfinite().all()))


print(torch.cuda.get_device_name(), pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3, "W", flush=True)
with torch.inference_mode():
    chip()
    memory_or_cache()
    weights = [torch.randn(WIDTH, INNER, device=device, dtype=torch.float16) * 0.02 for _ in range(LAYERS)]
    custom_gemm(weights)
    del weights
    prefills()
