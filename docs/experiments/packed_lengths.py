"""A decode step by the size of its blocks, and prefills by which projections read packed weights. Device ms.

5 ms apart: median; back to back: mean of the last 50 of 80 replays. The ways take turns, ROUNDS times.

python packed_lengths.py [decode] [prefill]
"""

import statistics
import sys
import time
from dataclasses import replace

import torch

from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.kernels.heuristics import Blocks, PackedRow, limits_on
from hybridgraph.kernels.hopper import gemv, kernels, nvrtc
from hybridgraph.kernels.hopper.kernels import HopperKernels
from hybridgraph.models.loading import load_model

POSITIONS, ROUNDS = 512, 3
FIELDS = ("packed_projected", "packed_swiglu", "packed_added", "packed_square")
device = torch.device("cuda")
state = {"tuned": PackedRow(), "patches": []}
read, gemv_of = nvrtc._read, gemv.gemv_of


def patched(name):
    text = read(name)
    for file, old, new in state["patches"]:
        if file == name:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
    return text


nvrtc._read = patched
kernels.gemv_of = lambda matrix, **how: replace(gemv_of(matrix, **how), tuned=state["tuned"])
FEED = """        Place place;
        for (int group = blockIdx.x; group < arguments.num_groups; group += gridDim.x)
            for (int k = 0; k < STEPS; k += WARPS, place.advance()) {"""
AHEAD = [
    (
        "gemv.cu",
        FEED,
        """        Place place;
        int done = 0;
        for (int group = blockIdx.x; group < arguments.num_groups; group += gridDim.x)
            for (int k = 0; k < STEPS; k += WARPS, place.advance(), done++) {
                if (done == STAGES) {  // while the row is not there yet
                    int g = group, c = k;
                    for (int i = 0; i < AHEAD_STAGES && g < arguments.num_groups; i++) {
                        const u32 size = min(WARPS, STEPS - c) * TILE_BYTES;
                        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(arguments.words + (long long)(g * STEPS + c) * (TILE_BYTES / 4)), "r"(size) : "memory");
                        c += WARPS;
                        if (c >= STEPS) c = 0, g += gridDim.x;
                    }
                }""",
    ),
]


def clear():
    nvrtc.kernel_of.cache_clear()
    gemv.program_of.cache_clear()


def captured(work):
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return graph


def timed(graph):
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after)


def compared(graphs, replays=80, pauses=8):
    apart, rows = {way: [] for way in graphs}, {way: [] for way in graphs}
    for _ in range(ROUNDS):
        for way, graph in graphs.items():
            for i in range(pauses):
                took = timed(graph)
                time.sleep(0.005)
                if i > 1:
                    apart[way].append(took)
        for way, graph in graphs.items():
            rows[way].append(statistics.mean([timed(graph) for _ in range(replays)][replays * 3 // 8 :]))
    return {way: (statistics.median(apart[way]), statistics.median(rows[way])) for way in graphs}


def decode():
    forwards = {w: FusedForward(loaded.module, HopperKernels(limits), weights=w) for w in ("plain", "packed")}
    cache = forwards["plain"].allocate_cache(POSITIONS)
    cache.keys.normal_()
    cache.values.normal_()
    token, position = torch.zeros(1, dtype=torch.long, device=device), torch.full((1,), POSITIONS - 1, device=device)
    graphs = {"plain": captured(lambda: forwards["plain"].decode(token, position, cache, logits))}

    def add(name, tuned=PackedRow(), blocks=Blocks(), patches=()):
        state.update(tuned=tuned, patches=list(patches))
        clear()
        forward = forwards["packed"]
        forward._kernels = HopperKernels(limits, blocks)
        try:
            graphs[name] = captured(lambda: forward.decode(token, position, cache, logits))
        except Exception as error:
            print(name, "failed", str(error)[:200], flush=True)
        state.update(tuned=PackedRow(), patches=[])
        clear()

    for warps in (8, 12, 16):
        for kib in (118, 128, 138, 150, 165, 180, 210):
            add(f"{warps} warps, {kib} KiB", PackedRow(warps, kib * 1024))
    for programs in (128, 512):
        add(
            f"8 warps, 138 KiB, {programs} programs of attention",
            PackedRow(8, 138 * 1024),
            Blocks(attention_programs=programs),
        )
    for stages in (4, 8):
        ahead = [(f, o, n.replace("AHEAD_STAGES", str(stages))) for f, o, n in AHEAD]
        add(f"8 warps, 150 KiB, {stages} stages ahead in L2", patches=ahead)
    for way, (apart, row) in compared(graphs, replays=60, pauses=8).items():
        print(f"decode {way:50} apart {apart:.3f}  back to back {row:.3f}", flush=True)


def prefill():
    forward = FusedForward(loaded.module, HopperKernels(limits), weights="packed")
    ids, start, last = (
        torch.randint(32000, (POSITIONS,), device=device),
        torch.zeros(1, dtype=torch.long, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    cache = forward.allocate_cache(POSITIONS)
    none = dict.fromkeys(FIELDS, 0)
    plain = FusedForward(loaded.module, HopperKernels(limits))
    for n in (10, 50, 100, 150, 200, 250):
        last.fill_(n - 1)
        ways = {"plain": none, "all": dict.fromkeys(FIELDS, 10_000)}
        if n >= 50:
            ways |= {field: none | {field: 10_000} for field in FIELDS}
        graphs, answers = {}, {}
        for way, fields in {"plain weights": none, **ways}.items():
            of = plain if way == "plain weights" else forward
            of._kernels = HopperKernels(replace(limits, **fields))
            try:
                of.prepare([n])
                graphs[way] = captured(lambda of=of: of.prefill(ids, n, start, last, cache, logits))
                answers[way] = logits.clone()
            except RuntimeError as error:
                print(n, way, "failed", str(error)[:200], flush=True)
        apart = {
            way: float((a.float() - answers["plain weights"].float()).norm() / a.float().norm())
            for way, a in answers.items()
        }
        for way, (pauses, row) in compared(graphs).items():
            print(
                f"prefill {n:4} {way:18} apart {pauses:.3f}  back to back {row:.3f}  logits {apart[way]:.1e} from plain ones",
                flush=True,
            )


with torch.inference_mode():
    print(torch.cuda.get_device_name(), flush=True)
    limits = limits_on(torch.cuda.get_device_name())
    loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
    logits = torch.empty(32000, dtype=torch.float16, device=device)
    for name in sys.argv[1:]:
        {"decode": decode, "prefill": prefill}[name]()
