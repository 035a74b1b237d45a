"""Why a decode step over packed weights takes longer than its kernels alone: variants, and stamps of one layer's blocks.

python packed_timeline.py
"""

import statistics
import time
from contextlib import contextmanager
from dataclasses import replace

import torch
from cuda.bindings import driver

from hybridgraph.engine.forward.fused import FusedForward
from hybridgraph.kernels import heuristics
from hybridgraph.kernels.heuristics import PackedRow, limits_on
from hybridgraph.kernels.hopper import gemv, kernels, nvrtc
from hybridgraph.kernels.hopper.kernels import HopperKernels
from hybridgraph.kernels.portable import TritonKernels
from hybridgraph.models.loading import load_model

POSITIONS = 512
device = torch.device("cuda")
read = nvrtc._read
state = {"tuned": PackedRow(), "patches": [], "carveout": None, "overlap": True, "stamps": None, "launches": 0}


def patched(name):
    text = read(name)
    for file, old, new in state["patches"]:
        if file == name:
            assert text.count(old) == 1, (old, text.count(old))
            text = text.replace(old, new)
    return text


nvrtc._read = patched
gemv_of = gemv.gemv_of
kernels.gemv_of = lambda matrix, **how: replace(gemv_of(matrix, **how), tuned=state["tuned"])
CARVEOUT = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
launch = nvrtc.launch


def launched(program, how, where, *arguments):
    if state["stamps"] is not None and program.source == "gemv.cu":
        arguments = (*arguments, (state["stamps"].data_ptr() + state["launches"] * 132 * 8 * 8, gemv.ctypes.c_void_p))
        state["launches"] += 1
    if state["carveout"] is not None:
        nvrtc.check(
            driver.cuFuncSetAttribute(
                nvrtc.kernel_of(program, how.shared_bytes, where.index), CARVEOUT, state["carveout"]
            )
        )
    launch(program, replace(how, overlap=how.overlap and state["overlap"]), where, *arguments)


nvrtc.launch = launched


def triton_launch(self, kernel, grid, tensors, **numbers):
    if self._overlap:
        numbers["launch_pdl"] = True
    compiled = kernel[grid](*tensors, PDL=self._overlap, **numbers)
    if state["carveout"] is not None:
        nvrtc.check(driver.cuFuncSetAttribute(driver.CUfunction(compiled.function), CARVEOUT, state["carveout"]))


TritonKernels._launch = triton_launch


def captured(work):
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return graph


def timed(graph, replays):
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    before.record()
    for _ in range(replays):
        graph.replay()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / replays


def clear():
    nvrtc.kernel_of.cache_clear()
    gemv.program_of.cache_clear()


def took(work):
    graph = captured(work)
    return statistics.median(timed(graph, 40) for _ in range(5))


loaded = load_model("llama-2-7b", load_format="dummy", dtype="float16", device=device, seed=0)
token, position = torch.zeros(1, dtype=torch.long, device=device), torch.full((1,), POSITIONS - 1, device=device)
logits = torch.empty(32000, dtype=torch.float16, device=device)
forwards = {weights: FusedForward(loaded.module, weights=weights) for weights in ("plain", "packed")}
cache = forwards["plain"].allocate_cache(POSITIONS)
cache.keys.normal_()
cache.values.normal_()


def decode(weights="packed"):
    forwards[weights].decode(token, position, cache, logits)


def variant(name, **change):
    before = dict(state)
    weights = change.pop("weights", "packed")
    state.update(change)
    clear()
    try:
        print(f"{name:50} {took(lambda: decode(weights)):.3f} ms", flush=True)
    except Exception as error:
        print(f"{name:50} failed: {str(error)[:300]}", flush=True)
    state.update(before)
    clear()


STAMP = """
__device__ __forceinline__ u64 now() { u64 t; asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t)); return t; }
__device__ __forceinline__ u32 smid() { u32 t; asm volatile("mov.u32 %0, %%smid;" : "=r"(t)); return t; }
"""
LATER = [
    ("gemv.cu", "    let_next_kernel_launch();\n", ""),
    ("gemv.cu", "    row.prepare(arguments);\n", "    row.prepare(arguments);\n    let_next_kernel_launch();\n"),
]
STAMPED = [
    ("gemv.cu", "struct Arguments {", STAMP + "struct Arguments {"),
    (
        "gemv.cu",
        "gemv(const __grid_constant__ Arguments arguments) {",
        "gemv(const __grid_constant__ Arguments arguments, u64* stamps) {\n    const u64 begin = now();",
    ),
    (
        "gemv.cu",
        "    row.prepare(arguments);\n",
        "    wait_for_kernels_in_front();\n    const u64 waited = now();\n    row.prepare(arguments);\n    const u64 prepared = now();\n    u64 first = 0, main_end = 0;\n",
    ),
    (
        "gemv.cu",
        "        sum_group(sums, arguments, ring, row, group, place);\n",
        "        sum_group(sums, arguments, ring, row, group, place);\n        if (!first) first = now();\n        main_end = now();\n",
    ),
    (
        "gemv.cu",
        "        if (lane < 16) Epilogue{arguments}.EPILOGUE(sum, other, group, lane);\n    }\n",
        """        if (lane < 16) Epilogue{arguments}.EPILOGUE(sum, other, group, lane);
    }
    if (threadIdx.x == 0) {
        u64* at = stamps + blockIdx.x * 8;
        at[0] = smid(), at[1] = begin, at[2] = waited, at[3] = prepared, at[4] = first, at[5] = main_end, at[6] = now();
    }
""",
    ),
]


def stamps(name, **change):
    before = dict(state)
    state.update(change)
    state.update(
        patches=STAMPED + state["patches"], stamps=torch.zeros(300, 132, 8, dtype=torch.long, device=device), launches=0
    )
    clear()
    decode()
    torch.cuda.synchronize()
    state["launches"] = 0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        decode()
    for _ in range(5):
        graph.replay()
    torch.cuda.synchronize()
    found = state["stamps"].cpu()[:129]
    state.update(before)
    clear()
    print(f"{name}: µs after the layer's first block began; block min/median/max", flush=True)
    for layer in (10, 20):
        zero = int(found[layer * 4, :, 1].min())
        for i, matrix in enumerate(("qkv", "out", "gate_up", "down", "qkv'")):
            rows = found[layer * 4 + i]
            sms = torch.bincount(rows[:, 0], minlength=132)
            text = "  ".join(
                f"{what} {'/'.join(f'{(float(f(rows[:, c].double())) - zero) / 1e3:.1f}' for f in (torch.min, torch.median, torch.max))}"
                for what, c in (("begin", 1), ("waited", 2), ("prepared", 3), ("first", 4), ("main", 5), ("end", 6))
            )
            print(
                f"  {matrix:8} most on an SM {int(sms.max())}, SMs without {int((sms == 0).sum())}: {text}", flush=True
            )


@contextmanager
def without_attention():
    attend = HopperKernels.one_row_attend
    HopperKernels.one_row_attend = lambda self, qkv, position, heads, norms, slots, store: qkv[:, : heads.query_width]
    yield
    HopperKernels.one_row_attend = attend


with torch.inference_mode():
    print(torch.cuda.get_device_name(), flush=True)
    variant("plain", weights="plain")
    variant("packed")
    with without_attention():
        variant("plain, no attention", weights="plain")
        variant("packed, no attention")
        variant("packed, no attention, 16 warps 210 KiB", tuned=PackedRow(16, 210 * 1024, 1))
    variant("packed, all carveouts 100", carveout=100)
    variant("plain, all carveouts 100", weights="plain", carveout=100)
    for tuned in (
        PackedRow(16, 210 * 1024),
        PackedRow(8, 210 * 1024),
        PackedRow(8, 150 * 1024),
        PackedRow(8, 72 * 1024),
        PackedRow(8, 48 * 1024),
        PackedRow(4, 50 * 1024, 2),
        PackedRow(8, 50 * 1024, 2),
        PackedRow(16, 100 * 1024),
    ):
        variant(f"packed, {tuned}", tuned=tuned)
        variant(f"  and carveouts 100", tuned=tuned, carveout=100)
    variant("packed, next kernel launched after the row", patches=LATER)
    variant("packed, 16 warps 210 KiB, launched after the row", patches=LATER, tuned=PackedRow(16, 210 * 1024))
    variant("packed, no overlap of its launches", overlap=False)
    variant("packed once more")
    stamps("packed")
    stamps("packed, 16 warps 210 KiB", tuned=PackedRow(16, 210 * 1024))
    stamps("packed, carveouts 100", carveout=100)
    ids, start, last = (
        torch.randint(32000, (512,), device=device),
        torch.zeros(1, dtype=torch.long, device=device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    for n in (10, 100, 200):
        for weights in ("plain", "packed"):
            for carveout in (None, 100):
                state["carveout"] = carveout
                clear()
                last.fill_(n - 1)
                forward = forwards[weights]
                forward.prepare([n])
                print(
                    f"prefill {n}, {weights}, carveout {carveout}: {took(lambda: forward.prefill(ids, n, start, last, cache, logits)):.3f} ms",
                    flush=True,
                )
