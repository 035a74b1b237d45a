"""The rotation in programs of several rows, and decoding's splits, on models' shapes: device ms of a replay.

python docs/experiments/rotation.py [NAME:LENGTH,LENGTH ...]

Variants are measured in turns, five rows of 40 replays each back to back; the median row is shown. Random weights.
"""

import math
import sys
from functools import partial
from statistics import median

import torch
import triton
from rowwise_before import rotate_store_kernel
from shapes import LIMITS, POSITIONS, SHAPES, build, captured, row_ms
from torch import Tensor

from hybridgraph.forward.fused import FusedForward
from hybridgraph.forward.kernels import HeadNorms, Heads, Slots
from hybridgraph.forward.kernels import triton as triton_kernels
from hybridgraph.forward.kernels.hopper import HopperKernels

BLOCKS = {
    f"{items} by {warps}": (items, warps)
    for items, warps in [(8, 4), (1, 1), (2, 1), (4, 1), (8, 2), (16, 4), (16, 8), (32, 4), (32, 8)]
}
PROGRAMS = (256, 64)


class Before(HopperKernels):
    """One row a program, and one warp where its heads have no common divisor of 8."""

    def rotate_store(self, qkv: Tensor, start: Tensor, heads: Heads, norms: HeadNorms, slots: Slots) -> Tensor:
        splits, rows, width = qkv.shape
        num_queries = width // heads.head_dim - 2 * heads.num_kv_heads
        together = math.gcd(num_queries, heads.num_kv_heads, 8)
        unused = slots.keys
        self._launch(
            rotate_store_kernel,
            (rows, (num_queries + 2 * heads.num_kv_heads) // together),
            (qkv, start, slots.keys, slots.values, slots.cos, slots.sin, unused, unused),
            head_stride=slots.keys.stride(0),
            eps=heads.eps,
            SPLITS=splits,
            NUM_QUERIES=num_queries,
            NUM_KEYS=heads.num_kv_heads,
            HALF=heads.head_dim // 2,
            BLOCK_HALF=triton.next_power_of_2(heads.head_dim // 2),
            BLOCK_HEADS=together,
            HAS_NORM=norms.key is not None,
            num_warps=4 if together == 8 else 1,
        )
        return qkv[0]


@torch.inference_mode()
def measure(name: str, lengths: list[int]) -> None:
    model = build(name)
    logits = torch.empty(model.config.vocab_size, dtype=torch.float16, device="cuda")
    start, token = (torch.tensor([n], device="cuda") for n in (0, 5))
    print(name, flush=True)
    variants = [("before", (8, 4), Before), *((key, block, HopperKernels) for key, block in BLOCKS.items())]
    for length in lengths:
        ids = torch.randint(1000, (length,), device="cuda")
        last = torch.tensor([length - 1], device="cuda")
        graphs, kept, rows, answers = {}, [], {}, {}
        for variant, block, kernels in variants:
            triton_kernels.ROTATE_BLOCK = block
            forward = FusedForward(model, kernels(LIMITS))
            kept.append(forward.allocate_cache(POSITIONS))
            graphs[variant] = captured(partial(forward.prefill, ids, length, start, last, kept[-1], logits))
            rows[variant] = []
        for _ in range(5):
            for variant, graph in graphs.items():
                rows[variant].append(row_ms(graph, 40))
                answers[variant] = logits.clone()
        assert all(torch.equal(answer, answers["before"]) for answer in answers.values())
        assert logits.isfinite().all()
        shown = "  ".join(f"{variant} {median(found):.3f}" for variant, found in rows.items())
        print(f"  {length:4d}: {shown}", flush=True)
    for context in (20, 300, 1900):
        position = torch.tensor([context], device="cuda")
        graphs, kept, rows = {}, [], {}
        for programs in PROGRAMS:
            triton_kernels.ATTENTION_PROGRAMS = programs
            forward = FusedForward(model, HopperKernels(LIMITS))
            kept.append(forward.allocate_cache(2048))
            graphs[programs] = captured(partial(forward.decode, token, position, kept[-1], logits))
            rows[programs] = []
        for _ in range(5):
            for programs, graph in graphs.items():
                rows[programs].append(row_ms(graph, 40))
        shown = "  ".join(f"{programs} {median(found):.3f}" for programs, found in rows.items())
        print(f"  decode at {context}: programs {shown}", flush=True)
    triton_kernels.ATTENTION_PROGRAMS = 256


def main() -> None:
    print(torch.cuda.get_device_name())
    for name, lengths in (argument.split(":") for argument in sys.argv[1:] or [f"{n}:10,100,400" for n in SHAPES]):
        measure(name, [int(length) for length in lengths.split(",")])


if __name__ == "__main__":
    main()
