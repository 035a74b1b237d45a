// A weight matrix times the rows of a prompt, for Hopper: TMA, wgmma, and an epilogue.
//
// Weights are the first operand of the tensor cores: they come in units of 64 rows, one to a warpgroup, and the
// prompt's tokens, padded to a multiple of 8 only, lie across. A block computes WARPGROUPS units for all TOKENS
// tokens over its share of the reduction (blockIdx.y); one more warpgroup feeds it through a ring of STAGES buffers.
//
// Which 64 rows make a unit, and their order, the weights' tensor map or their packing decides: so that the two rows of
// which a thread holds the sums are gate and up of one column where these are merged, and neighbours elsewhere.
//
// Packed weights (kernels/packed.py) go through a thread's registers, where they are unpacked while the tensor cores
// multiply those of the stage before.
//
// CLUSTER blocks share their loads of the tokens: each loads a part for all of them. Without that the traffic from
// the L2 cache, not memory or the tensor cores, sets the pace.
//
// Compiled by NVRTC for one shape (gemm.py), which defines the names in capitals, and wgmma<>() for ACROSS tokens and
// for what is left of TOKENS behind a multiple of ACROSS.

#include "packed.cuh"

constexpr int ROW_BYTES = 2 * BLOCK_K;  // of a stage: 128, the row of a swizzled tile
constexpr int BOX_BYTES = BOX_TOKENS * ROW_BYTES;  // one block's part of the tokens
// Where an even share of the multiprocessor's registers cannot hold a thread's sums, and 28 more, the producer gives some.
constexpr int EVEN_SHARE = 512 / (WARPGROUPS + 1) / 8 * 8;  // registers of a thread, given out in eights
constexpr bool UNEVEN_SHARES = TOKENS / 2 + (PACKED ? 72 : 28) > EVEN_SHARE;  // packed: and two stages' fragments
constexpr int PRODUCER_SHARE = 32, CONSUMER_SHARE = (EVEN_SHARE * (WARPGROUPS + 1) - PRODUCER_SHARE) / WARPGROUPS / 8 * 8;

// 64 rows of weights by 64 columns: where they are, and how they get into a stage. A unit may come in PARTS, each from a
// warp of its own: one thread issues a copy in some 80 cycles, of which a stage of packed weights needs twelve.
struct PlainUnits {
    static constexpr int BYTES = 64 * ROW_BYTES, PARTS = 1;
    TensorMap map;

    __device__ void copy(u32 target, u32 barrier, int step, int unit, int) const {
        copy_box_4d(target, map, barrier, step * BLOCK_K, 4 * unit);
    }
};

struct PackedUnits {
    static constexpr int BYTES = 4 * TILE_BYTES, PARTS = 4;
    const u32* words;
    const int* starts;  // of each tile's exceptions
    const u32* exceptions;
    int steps, units;

    __device__ void copy(u32 target, u32 barrier, int step, int unit, int part) const {
        const int group = 4 * min(unit, units - 1) + part;  // a block's last units may lie behind the matrix: nobody's sums
        copy_bytes(target + part * TILE_BYTES, words + tile(group, step) * (TILE_BYTES / 4), TILE_BYTES, barrier);
    }

    __device__ long long tile(int group, int step) const { return (long long)group * steps + step; }

    __device__ Exceptions exceptions_of(int group, int step) const {
        const long long at = tile(min(group, 4 * units - 1), step);
        const int first = __ldg(starts + at);
        return {exceptions + first, __ldg(starts + at + 1) - first};
    }
};

template <bool packed>
struct UnitsOf {
    using type = PlainUnits;
};
template <>
struct UnitsOf<true> {
    using type = PackedUnits;
};
using Units = UnitsOf<PACKED>::type;
constexpr int UNIT_BYTES = Units::BYTES;

struct Ring {
    u32 tiles, full, empty;  // shared addresses; full and empty: one barrier a stage

    __device__ u32 units(int stage) const { return tiles + stage * STAGE_BYTES; }
    __device__ u32 tokens(int stage) const { return units(stage) + WARPGROUPS * UNIT_BYTES; }
};

// A thread of each of some warps feeds the ring: weights are on their way before the kernels in front have ended, and
// tokens, by the first of them, after that.
struct Producer {
    const Ring& ring;
    const Units& weights;
    const TensorMap& tokens;
    int first_step, steps, part;

    __device__ void load_units(int step) const {
        const int stage = step % STAGES;
        if (part == 0) expect_bytes(ring.full + 8 * stage, STAGE_BYTES);  // other parts may come before that
#pragma unroll
        for (int u = 0; u < WARPGROUPS; u++)
            weights.copy(
                ring.units(stage) + u * UNIT_BYTES, ring.full + 8 * stage, first_step + step,
                blockIdx.x * WARPGROUPS + u, part);
    }

    __device__ void load_tokens(int step) const {
        const int stage = step % STAGES, rank = cluster_rank();
        copy_box_2d<CLUSTER>(
            ring.tokens(stage) + rank * BOX_BYTES, tokens, ring.full + 8 * stage, (first_step + step) * BLOCK_K,
            rank * BOX_TOKENS);
    }

    // What fits the ring. Only this block writes there: the others of its cluster need not have started.
    __device__ void begin() const {
        for (int step = 0; step < min(steps, STAGES); step++) load_units(step);
    }

    __device__ void run() const {
        if (part == 0) {
            wait_for_kernels_in_front();
            for (int step = 0; step < min(steps, STAGES); step++) load_tokens(step);
        }
        for (int step = STAGES; step < steps; step++) {
            wait_for_phase(ring.empty + 8 * (step % STAGES), (step / STAGES - 1) % 2);
            load_units(step);
            if (part == 0) load_tokens(step);
        }
    }
};

// A unit's sums over 16 columns. `unit`: its descriptor, or this thread's fragment. Rows of tokens have 128 bytes, which
// a descriptor counts in steps of 16.
template <typename Unit>
__device__ __forceinline__ void multiply(float (&sums)[TOKENS / 2], Unit unit, u64 tokens, int accumulate) {
    constexpr int WHOLE = TOKENS / ACROSS * ACROSS;
#pragma unroll
    for (int first = 0; first < WHOLE; first += ACROSS)
        wgmma<ACROSS>(sums + first / 2, unit, tokens + first * ROW_BYTES / 16, accumulate);
    if constexpr (WHOLE < TOKENS)
        wgmma<TOKENS - WHOLE>(sums + WHOLE / 2, unit, tokens + WHOLE * ROW_BYTES / 16, accumulate);
}

// One warpgroup: its unit's sums over `steps` stages.
template <typename Weights>
struct Consumer {
    const Ring& ring;
    const Weights& weights;
    int warpgroup, first_step, steps;

    __device__ __forceinline__ void run(float (&sums)[TOKENS / 2]) const {
        if constexpr (PACKED) {
            Fragments even, odd;  // the tensor cores still read one stage's while the next one's are unpacked
            for (int step = 0; step < steps / 2 * 2; step += 2) {
                multiply_packed(sums, even, step);
                multiply_packed(sums, odd, step + 1);
            }
            if (steps % 2) multiply_packed(sums, even, steps - 1);
        } else {
            for (int step = 0; step < steps; step++) {
                wait_for_phase(ring.full + 8 * (step % STAGES), step / STAGES % 2);
                const u64 unit = descriptor(ring.units(step % STAGES) + warpgroup * UNIT_BYTES);
                multiply_stage(sums, step, [&](int k) { return unit + 2 * k; });
            }
        }
        wgmma_wait<0>();
    }

    __device__ __forceinline__ void multiply_packed(float (&sums)[TOKENS / 2], Fragments& fragments, int step) const {
        const int warp = threadIdx.x / 32 % 4, group = 4 * (blockIdx.x * WARPGROUPS + warpgroup) + warp;
        Exceptions exceptions;
        if constexpr (EXCEPTIONS) exceptions = weights.exceptions_of(group, first_step + step);
        wait_for_phase(ring.full + 8 * (step % STAGES), step / STAGES % 2);
        fragments = load_tile(ring.units(step % STAGES) + warpgroup * UNIT_BYTES + warp * TILE_BYTES);
        if constexpr (EXCEPTIONS) patch(fragments, exceptions);
        multiply_stage(sums, step, [&](int k) { return fragments.of + 4 * k; });
    }

    // `unit(k)`: the weights' 16 columns k, as multiply() takes them.
    template <typename UnitOf>
    __device__ __forceinline__ void multiply_stage(float (&sums)[TOKENS / 2], int step, UnitOf unit) const {
        const u64 tokens = descriptor(ring.tokens(step % STAGES));
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < BLOCK_K / 16; k++) multiply(sums, unit(k), tokens + 2 * k, step + k > 0);
        wgmma_commit();
        wgmma_wait<1>();
        // The stage before has been read: tell every block that writes into it.
        const int index = threadIdx.x % 128;
        if (step > 0 && index < CLUSTER) arrive_at(ring.empty + 8 * ((step - 1) % STAGES), index);
    }
};

// An 8 x 8 block as wgmma leaves it (a thread has one weight row and two tokens), written token by token.
__device__ __forceinline__ void store_block(u16* target, int stride, int tokens_left, float first, float second) {
    const u32 packed = transposed(pack(first, second));
    const int lane = threadIdx.x % 32, token = lane / 4;
    if (token < tokens_left) *reinterpret_cast<u32*>(target + token * stride + 2 * (lane % 4)) = packed;
}

struct Epilogue {
    u16* out;  // [tokens, width]; partial sums: [splits, tokens, width]
    int num_tokens;
    int width;

    __device__ void store_swiglu(const float (&sums)[TOKENS / 2], int unit, int warp) const {
        const int first = 32 * unit + 8 * warp;
        if (first >= width) return;
#pragma unroll
        for (int j = 0; j < TOKENS / 8; j++) {
            float gated[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const float gate = sums[4 * j + i];
                gated[i] = __fdividef(gate, 1.0f + __expf(-gate)) * sums[4 * j + 2 + i];
            }
            store_block(out + (long long)8 * j * width + first, width, num_tokens - 8 * j, gated[0], gated[1]);
        }
    }

    // Sums over this block's share of the reduction; whoever reads them adds them up.
    __device__ void store_partial(const float (&sums)[TOKENS / 2], int unit, int warp) const {
        const int lane = threadIdx.x % 32, first = 64 * unit + 16 * warp + 2 * (lane / 4);
        if (first >= width) return;
        u16* target = out + (long long)blockIdx.y * num_tokens * width + first;
#pragma unroll
        for (int j = 0; j < TOKENS / 4; j++) {
            const int token = 8 * (j / 2) + 2 * (lane % 4) + j % 2, sum = 4 * (j / 2) + j % 2;
            if (token < num_tokens)
                *reinterpret_cast<u32*>(target + (long long)token * width) = pack(sums[sum], sums[sum + 2]);
        }
    }
};

extern "C" __global__ void __launch_bounds__(128 * (WARPGROUPS + 1), 1) gemm(
    const __grid_constant__ Units weights, const __grid_constant__ TensorMap tokens, u16* out, int num_tokens, int width,
    int num_steps) {
    extern __shared__ unsigned char memory[];
    __shared__ u64 barriers[2 * STAGES];
    const Ring ring{
        (shared_address(memory) + 1023) & ~1023u, shared_address(barriers), shared_address(barriers + STAGES)};
    const int first_step = num_steps * blockIdx.y / gridDim.y;
    const int steps = num_steps * (blockIdx.y + 1) / gridDim.y - first_step;
    const Producer producer{ring, weights, tokens, first_step, steps, (int)threadIdx.x / 32};
    const bool produces = threadIdx.x < 32 * Units::PARTS && threadIdx.x % 32 == 0;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(ring.full + 8 * stage, 1);
            init_barrier(ring.empty + 8 * stage, WARPGROUPS * CLUSTER);
        }
        publish_barriers();
    }
    if constexpr (Units::PARTS > 1) __syncthreads();
    if (produces) producer.begin();
    cluster_arrive_relaxed();
    cluster_wait();
    let_next_kernel_launch();
    const int warpgroup = (int)threadIdx.x / 128 - 1;
    if (warpgroup < 0) {
        if constexpr (UNEVEN_SHARES) give_registers<PRODUCER_SHARE>();
        if (produces) producer.run();
        __syncwarp();
        cluster_arrive();
    } else {
        if constexpr (UNEVEN_SHARES) take_registers<CONSUMER_SHARE>();
        float sums[TOKENS / 2];
        Consumer<Units>{ring, weights, warpgroup, first_step, steps}.run(sums);
        if constexpr (PACKED)
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) sums[i] *= UNSCALED;
        cluster_arrive();  // before the epilogue: to say so only behind it would wait for what it stores
        wait_for_kernels_in_front();  // they may still read what the epilogue overwrites
        const Epilogue epilogue{out, num_tokens, width};
        epilogue.EPILOGUE(sums, blockIdx.x * WARPGROUPS + warpgroup, threadIdx.x / 32 % 4);
    }
    cluster_wait();  // no block ends while another may still write or arrive there
}
