// One row times a packed weight matrix, for Hopper: what decoding does, where reading the weights sets the pace.
//
// A block computes one group of 16 weight rows after another (blockIdx.x, + gridDim.x, …). One thread feeds it through
// a ring of STAGES buffers: a stage is WARPS tiles of 16 rows by 64 columns, contiguous, and a warp takes one of them.
// The ring is filled before the kernels in front have ended: weights are no kernel's output. It is small enough for two
// blocks a multiprocessor, so that the next kernel's first weights come while this one ends.
//
// The tensor cores multiply (m16n8k16): the row is their second operand, in two of its eight columns: the numbers
// rounded to float16, and what rounding left. So products are as good as in float32, and sums are float32.
//
// Compiled by NVRTC for one shape (gemv.py), which defines the names in capitals.

#include "packed.cuh"

constexpr int STEPS = (COLUMNS + 63) / 64;  // tiles of a group
constexpr int STEPS_OF_STAGES = (STEPS + WARPS - 1) / WARPS * WARPS;  // the last stage may hold fewer than WARPS tiles
constexpr int CHUNKS = (STEPS * 8 + 32 * WARPS - 1) / (32 * WARPS);  // of 8 columns, that a thread prepares
constexpr int LANES = NORM ? 8 : 4;  // that hold some of the row: a float16's remainder is zero where there is no norm
constexpr int STAGE_BYTES = WARPS * TILE_BYTES;

struct Arguments {
    const u32* words;
    const int* starts;  // of each tile's exceptions
    const u32* exceptions;
    const u16* row;  // [COLUMNS]
    const u16* norm;  // [COLUMNS], read where NORM
    const u16* bias;  // [num_rows], read where BIAS
    u16* out;  // [num_rows]; where ADD, added to
    float eps;
    int num_rows;  // of `out`
    int num_groups;
};

__device__ __forceinline__ float to_float(u32 bits) {
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(u16(bits)));
    return number;
}

__device__ __forceinline__ u16 to_half(float number) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
    return bits;
}

__device__ __forceinline__ void sync_consumers() { asm volatile("bar.sync 1, %0;" ::"n"(32 * WARPS) : "memory"); }

__device__ __forceinline__ void multiply(float (&sums)[4], const u32* weights, u32 low, u32 high) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(weights[0]), "r"(weights[1]), "r"(weights[2]), "r"(weights[3]), "r"(low), "r"(high));
}

__device__ __forceinline__ float warp_sum(float number) {
#pragma unroll
    for (int distance = 16; distance; distance /= 2) number += __shfl_xor_sync(~0u, number, distance);
    return number;
}

// The row, normed, as the second operand of the tensor cores: [STEPS * 2] times 32 columns, LANES of 16 bytes.
struct Row {
    u32 fragments;  // shared address
    float* squares;  // shared, [WARPS]

    __device__ void prepare(const Arguments& arguments) const {
        float x[CHUNKS][8], scale[CHUNKS][8], sum = 0;
        if constexpr (NORM) load(arguments.norm, scale);  // before the kernels in front have ended
        wait_for_kernels_in_front();
        load(arguments.row, x);
        if constexpr (NORM) {
#pragma unroll
            for (int i = 0; i < CHUNKS * 8; i++) sum += x[i / 8][i % 8] * x[i / 8][i % 8];
            const float rstd = rsqrtf(block_sum(sum) / COLUMNS + arguments.eps);
#pragma unroll
            for (int i = 0; i < CHUNKS * 8; i++) x[i / 8][i % 8] *= rstd * scale[i / 8][i % 8];
        }
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) store(chunk(i), x[i]);
        sync_consumers();
    }

    __device__ static int chunk(int i) { return i * 32 * WARPS + threadIdx.x; }

    __device__ void load(const u16* source, float (&to)[CHUNKS][8]) const {
#pragma unroll
        for (int i = 0; i < CHUNKS; i++) {
            uint4 bits = make_uint4(0, 0, 0, 0);
            if (8 * chunk(i) < COLUMNS) bits = *reinterpret_cast<const uint4*>(source + 8 * chunk(i));
            const u32 pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
            for (int j = 0; j < 8; j++) to[i][j] = to_float(pairs[j / 2] >> 16 * (j % 2));
        }
    }

    __device__ float block_sum(float sum) const {
        sum = warp_sum(sum);
        if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = sum;
        sync_consumers();
        sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) sum += squares[warp];
        return sum;
    }

    // Columns 8 * chunk and following: lane t of four has pair t; and, where NORM, lane t + 4 what rounding left.
    __device__ void store(int chunk, const float (&x)[8]) const {
        if (chunk >= STEPS * 8) return;
#pragma unroll
        for (int t = 0; t < 4; t++) {
            const u16 first = to_half(x[2 * t]), second = to_half(x[2 * t + 1]);
            const u32 at = fragments + (chunk / 4 * LANES + t) * 16 + chunk % 4 * 4;
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(at), "r"(first | u32(second) << 16) : "memory");
            if constexpr (NORM) {
                const u16 left = to_half(x[2 * t] - to_float(first)), right = to_half(x[2 * t + 1] - to_float(second));
                asm volatile("st.shared.u32 [%0], %1;" ::"r"(at + 64), "r"(left | u32(right) << 16) : "memory");
            }
        }
    }

    // 32 columns: low and high halves of 16, twice. Other lanes hold columns of the operand that are zero.
    __device__ uint4 load_fragments(int columns) const {
        uint4 found = make_uint4(0, 0, 0, 0);
        const u32 lane = threadIdx.x % 32;
        if (lane < LANES)
            asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(found.x), "=r"(found.y), "=r"(found.z), "=r"(found.w)
                         : "r"(fragments + (columns * LANES + lane) * 16));
        return found;
    }
};

// A place in the ring, and which time round it is.
struct Place {
    int stage = 0;
    u32 parity = 0;

    __device__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

struct Ring {
    u32 stages, full, empty;  // shared addresses; full and empty: one barrier a stage

    __device__ void feed(const Arguments& arguments) const {
        Place place;
        for (int group = blockIdx.x; group < arguments.num_groups; group += gridDim.x)
            for (int k = 0; k < STEPS; k += WARPS, place.advance()) {
                const u32 bytes = min(WARPS, STEPS - k) * TILE_BYTES, barrier = full + 8 * place.stage;
                const u32* source = arguments.words + (long long)(group * STEPS + k) * (TILE_BYTES / 4);
                wait_for_phase(empty + 8 * place.stage, place.parity ^ 1);  // the first time round it is
                expect_bytes(barrier, bytes);
                copy_bytes(stages + place.stage * STAGE_BYTES, source, bytes, barrier);
            }
    }
};

__device__ __forceinline__ Exceptions exceptions_of(const Arguments& arguments, int tile) {
    const int first = __ldg(arguments.starts + tile);
    return {arguments.exceptions + first, __ldg(arguments.starts + tile + 1) - first};
}

// A warp's sums of a group: rows lane / 4 and lane / 4 + 8, in lanes whose number is a multiple of 4.
__device__ __forceinline__ void sum_group(
    float (&sums)[2], const Arguments& arguments, const Ring& ring, const Row& row, int group, Place& place) {
    const int warp = threadIdx.x / 32;
    float parts[2][4] = {};
    for (int k = warp; k < STEPS_OF_STAGES; k += WARPS, place.advance()) {
        if (k < STEPS) {
            Exceptions exceptions;
            if constexpr (EXCEPTIONS) exceptions = exceptions_of(arguments, group * STEPS + k);
            const uint4 first = row.load_fragments(2 * k), second = row.load_fragments(2 * k + 1);
            wait_for_phase(ring.full + 8 * place.stage, place.parity);
            Fragments weights = load_tile(ring.stages + place.stage * STAGE_BYTES + warp * TILE_BYTES);
            if constexpr (EXCEPTIONS) patch(weights, exceptions);
            multiply(parts[0], weights.of, first.x, first.y);
            multiply(parts[1], weights.of + 4, first.z, first.w);
            multiply(parts[0], weights.of + 8, second.x, second.y);
            multiply(parts[1], weights.of + 12, second.z, second.w);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive(ring.empty + 8 * place.stage);
    }
    // The operand's first column has the rounded row, the second what rounding left: both are in the same lane.
#pragma unroll
    for (int i = 0; i < 2; i++) sums[i] = (parts[0][2 * i] + parts[1][2 * i]) + (parts[0][2 * i + 1] + parts[1][2 * i + 1]);
}

struct Epilogue {
    const Arguments& arguments;

    __device__ void store_rows(float sum, float, int group, int lane) const {
        // Fragment rows 0 to 7 are the even rows of the group, 8 to 15 the odd ones.
        const int at = 16 * group + lane % 8 * 2 + lane / 8;
        if (at >= arguments.num_rows) return;
        if constexpr (BIAS) sum += to_float(arguments.bias[at]);
        if constexpr (ADD) sum += to_float(arguments.out[at]);
        arguments.out[at] = to_half(sum);
    }

    __device__ void store_swiglu(float gate, float up, int group, int lane) const {
        const int at = 8 * group + lane;
        if (lane < 8 && at < arguments.num_rows)
            arguments.out[at] = to_half(__fdividef(gate, 1.0f + __expf(-gate)) * up);
    }
};

extern "C" __global__ void __launch_bounds__(32 * (WARPS + 1)) gemv(const __grid_constant__ Arguments arguments) {
    extern __shared__ __align__(128) unsigned char memory[];
    __shared__ u64 barriers[2 * STAGES];
    __shared__ float squares[WARPS], partial[2][WARPS][16];
    const Ring ring{shared_address(memory), shared_address(barriers), shared_address(barriers + STAGES)};
    const Row row{ring.stages + STAGES * STAGE_BYTES, squares};
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(ring.full + 8 * stage, 1);
            init_barrier(ring.empty + 8 * stage, WARPS);
        }
        publish_barriers();
    }
    __syncthreads();
    let_next_kernel_launch();
    if (warp == WARPS) {
        if (lane == 0) ring.feed(arguments);
        return;
    }
    row.prepare(arguments);
    Place place;
    int turn = 0;
    for (int group = blockIdx.x; group < arguments.num_groups; group += gridDim.x, turn++) {
        float sums[2];
        sum_group(sums, arguments, ring, row, group, place);
        float(*parts)[16] = partial[turn % 2];
        if (lane % 4 == 0) parts[warp][lane / 4] = sums[0], parts[warp][lane / 4 + 8] = sums[1];
        sync_consumers();
        if (warp != turn % WARPS) continue;  // another one's turn to add up
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += parts[w][lane % 16];
        sum *= UNSCALED;
        const float other = __shfl_down_sync(~0u, sum, 8);
        if (lane < 16) Epilogue{arguments}.EPILOGUE(sum, other, group, lane);
    }
}
