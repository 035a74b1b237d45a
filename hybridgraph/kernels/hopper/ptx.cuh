// Hopper's instructions as functions: barriers, bulk copies, clusters, overlapping launches, the tensor cores.
//
// Names follow what the code that calls them means; the PTX ISA documents each instruction under its own.
// ELEMENT (f16 or bf16) and the instances of WGMMA() are the includer's.
#pragma once

using u16 = unsigned short;  // an element, as bits
using u32 = unsigned int;
using u64 = unsigned long long;

constexpr u64 EVICT_FIRST = 0x12F0000000000000, EVICT_LAST = 0x14F0000000000000;  // cache policies

struct alignas(64) TensorMap {
    u64 opaque[16];
};

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

// --- shared memory and its barriers --------------------------------------------------------------

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Barriers that were initialized are seen by the cluster's blocks and by the copy engine.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
}

__device__ __forceinline__ void expect_bytes(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void wait_for_phase(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier), "r"(parity) : "memory");
}

// --- clusters and launches -----------------------------------------------------------------------

// Arrive at the same barrier of a block of the cluster.
__device__ __forceinline__ void arrive_at(u32 barrier, u32 block) {
    asm volatile(
        "{\n"
        ".reg .b32 remote;\n"
        "mapa.shared::cluster.u32 remote, %0, %1;\n"
        "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
        "}" ::"r"(barrier), "r"(block) : "memory");
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// Relaxed: only barriers that were initialized before are seen behind cluster_wait(), which is quicker.
__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

__device__ __forceinline__ void let_next_kernel_launch() { asm volatile("griddepcontrol.launch_dependents;"); }

__device__ __forceinline__ void wait_for_kernels_in_front() {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

// The multiprocessor's registers, divided anew among its warpgroups.
template <int registers>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}

// --- copies to shared memory ---------------------------------------------------------------------

// Contiguous bytes, a multiple of 16, that are read once.
__device__ __forceinline__ void copy_bytes(u32 target, const void* source, u32 bytes, u32 barrier) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
        ::"r"(target), "l"(source), "r"(bytes), "r"(barrier), "l"(EVICT_FIRST) : "memory");
}

// A box of a map of four dimensions, from (column, 0, 0, row) on, that is read once.
__device__ __forceinline__ void copy_box_4d(u32 target, const TensorMap& map, u32 barrier, int column, int row) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %3, %4}], [%5], %6;" ::"r"(target), "l"(&map), "r"(column), "r"(0), "r"(row),
        "r"(barrier), "l"(EVICT_FIRST) : "memory");
}

// A box of a matrix that is read again, to the same place in each of a cluster's blocks.
template <int blocks>
__device__ __forceinline__ void copy_box_2d(u32 target, const TensorMap& map, u32 barrier, int column, int row) {
    if constexpr (blocks > 1)
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
            ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(target), "l"(&map), "r"(column),
            "r"(row), "r"(barrier), "h"(u16((1 << blocks) - 1)), "l"(EVICT_LAST) : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
            " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target), "l"(&map), "r"(column), "r"(row), "r"(barrier),
            "l"(EVICT_LAST) : "memory");
}

// --- the tensor cores ----------------------------------------------------------------------------

// The wgmma descriptor of a tile whose rows are 128 bytes, swizzled over 8 of them (PTX ISA, matrix descriptor).
__device__ __forceinline__ u64 descriptor(u32 tile) {
    return (u64{1} << 62) | (u64{1024 >> 4} << 32) | (u64{1} << 16) | ((tile & 0x3FFFF) >> 4);
}

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

// Sums of 64 weight rows times COUNT tokens over 16 columns, added to `sums` where `accumulate`. Tokens are a
// descriptor of a tile in shared memory; so are the weights, or a thread holds their fragment, four registers.
template <int COUNT>
__device__ void wgmma(float* sums, u64 weights, u64 tokens, int accumulate);
template <int COUNT>
__device__ void wgmma(float* sums, const u32* weights, u64 tokens, int accumulate);

// Each defines one wgmma<COUNT>(). The preprocessor cannot count, so the includer spells out what hangs on COUNT: the
// sums' places "%0, %1, …", the places behind them, and the sums as operands "+f"(sums[0]), …
#define WGMMA(COUNT, SUMS, WEIGHTS, TOKENS_, ACCUMULATE, ...)                                                          \
    template <>                                                                                                        \
    __device__ __forceinline__ void wgmma<COUNT>(float* sums, u64 weights, u64 tokens, int accumulate) {               \
        asm volatile("{.reg .pred p; setp.ne.b32 p, " ACCUMULATE ", 0;\n"                                              \
                     "wgmma.mma_async.sync.aligned.m64n" TEXT(COUNT) "k16.f32." TEXT(ELEMENT) "." TEXT(ELEMENT)        \
                     " {" SUMS "}, " WEIGHTS ", " TOKENS_ ", p, 1, 1, 0, 0;}"                                          \
                     : __VA_ARGS__                                                                                     \
                     : "l"(weights), "l"(tokens), "r"(accumulate));                                                    \
    }

#define WGMMA_FRAGMENT(COUNT, SUMS, WEIGHTS, TOKENS_, ACCUMULATE, ...)                                                 \
    template <>                                                                                                        \
    __device__ __forceinline__ void wgmma<COUNT>(float* sums, const u32* weights, u64 tokens, int accumulate) {        \
        asm volatile("{.reg .pred p; setp.ne.b32 p, " ACCUMULATE ", 0;\n"                                              \
                     "wgmma.mma_async.sync.aligned.m64n" TEXT(COUNT) "k16.f32." TEXT(ELEMENT) "." TEXT(ELEMENT)        \
                     " {" SUMS "}, {" WEIGHTS "}, " TOKENS_ ", p, 1, 1, 0;}"                                           \
                     : __VA_ARGS__                                                                                     \
                     : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "l"(tokens),                \
                       "r"(accumulate));                                                                               \
    }

// --- elements ------------------------------------------------------------------------------------

// Two sums as two elements, the first in the lower half.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 packed;
    asm("cvt.rn." TEXT(ELEMENT) "x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// The 8 x 8 elements of a warp, a pair to a thread, transposed.
__device__ __forceinline__ u32 transposed(u32 pair) {
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(pair));
    return pair;
}
