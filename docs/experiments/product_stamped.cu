#ifndef AHEAD_STEPS
#define AHEAD_STEPS 0
#endif
// A weight matrix times the rows of a prompt, for Hopper: TMA, wgmma, and what follows the product in its epilogue.
//
// Weights are the first operand of the tensor cores: they come in units of 64 rows, one to a warpgroup, and the
// prompt's tokens, padded to a multiple of 8 only, lie across. A block computes WARPGROUPS units (blockIdx.x) for
// TOKENS tokens (blockIdx.z) over its share of the reduction (blockIdx.y); one more warpgroup feeds it through a
// ring of STAGES buffers.
//
// Which 64 rows make a unit, the weights' tensor map decides. Where rows belong together in pairs, as gate and up or
// the two halves of a head do, it alternates between both in blocks of 8, so that a thread's sums hold whole pairs.
//
// A cluster is SHARING x SPLITS blocks. The SHARING blocks of the same reduction share their loads of the tokens: each
// loads a part for all of them. Without that the traffic from the L2 cache, not memory or the tensor cores, sets the
// pace. The SPLITS blocks of the same units exchange their sums through each other's shared memory: each adds up, in
// a fixed order, and finishes one slice of the tokens.
//
// Compiled by NVRTC for one shape (product.py), which defines the names in capitals and the functions pack(),
// unpack() and multiply().

using u16 = unsigned short;  // an element, as bits
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

__device__ float out_of_sight[1];
#ifdef TRACE
#define STAMP(i) do { if (trace) { long long now; asm volatile("mov.u64 %0, %%clock64;" : "=l"(now)); trace[i] = now; } } while (0)
#else
#define STAMP(i)
#endif

struct alignas(64) TensorMap {
    u64 opaque[16];
};

constexpr int BLOCK_K = 64;  // columns of a stage: 128 bytes, the row of a swizzled tile
constexpr int UNIT_BYTES = 64 * 128;
constexpr int GROUPS = TOKENS / 8;  // of tokens: a thread has two rows and two tokens of each
constexpr int SLICE = (GROUPS + SPLITS - 1) / SPLITS;  // groups that one of the splits finishes
constexpr int BOX_TOKENS = (GROUPS + SHARING - 1) / SHARING * 8;  // one block's part of the loads
constexpr int BOX_BYTES = BOX_TOKENS * 128;
constexpr int STAGE_BYTES = WARPGROUPS * UNIT_BYTES + SHARING * BOX_BYTES;
constexpr int WORKERS = 128 * WARPGROUPS;  // threads that multiply
constexpr u64 EVICT_FIRST = 0x12F0000000000000, EVICT_LAST = 0x14F0000000000000;  // cache policies

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ void init_barrier(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void expect_bytes(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void wait_for_phase(u32 barrier, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n"
        "}" ::"r"(barrier), "r"(parity) : "memory");
}

// The rank in this block's cluster of its fellow that shares tokens as the `sharing`-th, of the `split`-th reduction.
__device__ __forceinline__ u32 rank_of(u32 sharing, u32 split) { return sharing + SHARING * split; }

__device__ __forceinline__ u32 sharing_index() {
    u32 index;
    asm("mov.u32 %0, %%cluster_ctaid.x;" : "=r"(index));
    return index;
}

__device__ __forceinline__ u32 split_index() {
    u32 index;
    asm("mov.u32 %0, %%cluster_ctaid.y;" : "=r"(index));
    return index;
}

// An address of this block's shared memory, in another block of the cluster.
__device__ __forceinline__ u32 address_at(u32 address, u32 rank) {
    u32 remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

__device__ __forceinline__ void arrive_at(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// What this thread wrote is seen behind cluster_wait() in every block of the cluster; relaxed: its barriers alone are.
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }

__device__ __forceinline__ void cluster_arrive_relaxed() {
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

__device__ __forceinline__ void wait_for_kernels_in_front() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// 64 columns of one unit, which is one of `units_a_part` of its part of the matrix.
__device__ __forceinline__ void load_unit(
    u32 target, const TensorMap& weights, u32 barrier, int column, int unit, int units_a_part) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
        " [%0], [%1, {%2, %3, %3, %4, %5}], [%6], %7;" ::"r"(target), "l"(&weights), "r"(column), "r"(0),
        "r"(4 * (unit % units_a_part)), "r"(unit / units_a_part), "r"(barrier), "l"(EVICT_FIRST) : "memory");
}

__device__ __forceinline__ void prefetch_unit(const TensorMap& weights, int column, int unit, int units_a_part) {
    asm volatile(
        "cp.async.bulk.prefetch.tensor.5d.L2.global [%0, {%1, %2, %2, %3, %4}];" ::"l"(&weights), "r"(column), "r"(0),
        "r"(4 * (unit % units_a_part)), "r"(unit / units_a_part) : "memory");
}

// 64 columns of BOX_TOKENS tokens, to the same place in every block that shares them.
__device__ __forceinline__ void load_tokens(u32 target, const TensorMap& tokens, u32 barrier, int column, int token) {
    if constexpr (SHARING > 1)
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
            ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(target), "l"(&tokens), "r"(column),
            "r"(token), "r"(barrier), "h"(u16(((1 << SHARING) - 1) << rank_of(0, split_index()))), "l"(EVICT_LAST)
            : "memory");
    else
        asm volatile(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
            " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(target), "l"(&tokens), "r"(column), "r"(token), "r"(barrier),
            "l"(EVICT_LAST) : "memory");
}

// The wgmma descriptor of a tile whose rows are 128 bytes, swizzled over 8 of them (PTX ISA, matrix descriptor).
__device__ __forceinline__ u64 descriptor(u32 tile) {
    return (u64{1} << 62) | (u64{1024 >> 4} << 32) | (u64{1} << 16) | ((tile & 0x3FFFF) >> 4);
}

struct Ring {
    u32 tiles, full, empty;  // shared addresses; full and empty: one barrier a stage

    __device__ u32 units(int stage) const { return tiles + stage * STAGE_BYTES; }
    __device__ u32 tokens(int stage) const { return units(stage) + WARPGROUPS * UNIT_BYTES; }
};

// One thread feeds the ring: weights are on their way before the kernels in front have ended, tokens after that.
struct Feeder {
    const Ring& ring;
    const TensorMap &weights, &tokens;
    int first_step, steps, units_a_part;

    __device__ void load_units(int step) const {
        const int stage = step % STAGES;
        expect_bytes(ring.full + 8 * stage, STAGE_BYTES);
#pragma unroll
        for (int u = 0; u < WARPGROUPS; u++)
            load_unit(
                ring.units(stage) + u * UNIT_BYTES, weights, ring.full + 8 * stage, (first_step + step) * BLOCK_K,
                blockIdx.x * WARPGROUPS + u, units_a_part);
    }

    __device__ void load_tokens(int step) const {
        const int stage = step % STAGES, part = sharing_index();
        ::load_tokens(
            ring.tokens(stage) + part * BOX_BYTES, tokens, ring.full + 8 * stage, (first_step + step) * BLOCK_K,
            blockIdx.z * TOKENS + part * BOX_TOKENS);
    }

    // What fits the ring. Only this block writes there and waits for it: its fellows need not have started.
    __device__ void begin() const {
        for (int step = 0; step < min(steps, STAGES); step++) load_units(step);
    }

    __device__ void run(long long* trace) const {
        for (int step = STAGES; step < min(steps, STAGES + AHEAD_STEPS); step++)
            for (int u = 0; u < WARPGROUPS; u++)
                prefetch_unit(weights, (first_step + step) * BLOCK_K, blockIdx.x * WARPGROUPS + u, units_a_part);
        STAMP(1);
        wait_for_kernels_in_front();
        STAMP(2);
        for (int step = 0; step < min(steps, STAGES); step++) load_tokens(step);
        for (int step = STAGES; step < steps; step++) {
            wait_for_phase(ring.empty + 8 * (step % STAGES), (step / STAGES - 1) % 2);
            load_units(step);
            load_tokens(step);
        }
    }
};

using Sums = float[TOKENS / 2];

// One warpgroup: its unit's sums over `steps` stages.
__device__ __forceinline__ void reduce(Sums& sums, const Ring& ring, int warpgroup, int steps, long long* trace) {
    const int index = threadIdx.x % 128;
    const u32 empty = index < SHARING ? address_at(ring.empty, rank_of(index, split_index())) : 0;
    for (int step = 0; step < steps; step++) {
        const int stage = step % STAGES;
        wait_for_phase(ring.full + 8 * stage, step / STAGES % 2);
        if (step == 0) STAMP(3);
        const u64 a = descriptor(ring.units(stage) + warpgroup * UNIT_BYTES), b = descriptor(ring.tokens(stage));
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < BLOCK_K / 16; k++) multiply(sums, a + 2 * k, b + 2 * k, step + k > 0);
        asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" ::: "memory");
        // The stage before has been read: tell every block that writes into it.
        if (step > 0 && index < SHARING) arrive_at(empty + 8 * ((step - 1) % STAGES));
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
}

// A group of tokens.
struct Tokens {
    int first;
    int left;  // from there to the prompt's end; may be negative
};

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }

// 8 rows by 8 tokens change between a thread's row and two tokens, and one token and two rows: as memory has them.
__device__ __forceinline__ u32 transposed(u32 block) {
    u32 other;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(block));
    return other;
}

// `rows`: where the block's first row is in its first token; `stride`: from token to token.
__device__ __forceinline__ void store_block(u16* rows, i64 stride, int tokens_left, float first, float second) {
    const u32 block = transposed(pack(first, second));
    const int token = lane_id() / 4;
    if (token < tokens_left) *reinterpret_cast<u32*>(rows + token * stride + 2 * (lane_id() % 4)) = block;
}

// As memory has it: transposing is left for later, so that no load waits for another.
__device__ __forceinline__ u32 load_block(const u16* rows, i64 stride, int tokens_left) {
    const int token = lane_id() / 4;
    return token < tokens_left ? *reinterpret_cast<const u32*>(rows + token * stride + 2 * (lane_id() % 4)) : 0;
}

// Epilogues. Each tells a warp where its 16 rows of a unit go; fetches what a group of tokens needs, before the sums
// are there; and finishes the group. A thread has 2 x 2 sums of it: x and y of row lane / 4, z and w of the row 8
// further or paired with it; both of tokens 2 * (lane % 4) and the next.

// Pairs of gate and up: silu(gate) * up.
struct Swiglu {
    u16* out;  // [tokens, width]
    int width;

    struct Rows {
        u16* out;
        int width;
        bool inside;

        struct Fetched {};
        __device__ Fetched fetch(Tokens) const { return {}; }

        __device__ void finish(Tokens at, Fetched, float4 sums) const {
            auto gated = [](float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; };
            if (inside)
                store_block(out + (i64)at.first * width, width, at.left, gated(sums.x, sums.z), gated(sums.y, sums.w));
        }
    };

    __device__ Rows rows(int unit, int warp) const {
        const int first = 32 * unit + 8 * warp;
        return {out + first, width, first < width};
    }
};

// Rows in order: hidden += the product.
struct Add {
    u16* hidden;  // [tokens, width]
    int width;

    struct Rows {
        u16* hidden;
        int width;
        bool inside;

        struct Fetched {
            u32 first, second;
        };

        __device__ Fetched fetch(Tokens at) const {
            const u16* old = hidden + (i64)at.first * width;
            if (!inside) return {};
            return {load_block(old, width, at.left), load_block(old + 8, width, at.left)};
        }

        __device__ void finish(Tokens at, Fetched old, float4 sums) const {
            if (!inside) return;
            u16* target = hidden + (i64)at.first * width;
            const float2 first = unpack(transposed(old.first)), second = unpack(transposed(old.second));
            store_block(target, width, at.left, first.x + sums.x, first.y + sums.y);
            store_block(target + 8, width, at.left, second.x + sums.z, second.y + sums.w);
        }
    };

    __device__ Rows rows(int unit, int warp) const {
        const int first = 64 * unit + 16 * warp;
        return {hidden + first, width, first < width};
    }
};

// Rows in order: float32 sums over a share of the reduction; whoever reads them adds them up.
struct Partial {
    float* out;  // [splits, tokens, width]
    int width, num_tokens;

    struct Rows {
        float* out;
        int width;
        bool inside;

        struct Fetched {};
        __device__ Fetched fetch(Tokens) const { return {}; }

        __device__ void finish(Tokens at, Fetched, float4 sums) const {
            if (!inside) return;
            const int token = 2 * (lane_id() % 4);
            float* target = out + (i64)(at.first + token) * width;
            if (token < at.left) target[0] = sums.x, target[8] = sums.z;
            if (token + 1 < at.left) target[width] = sums.y, target[width + 8] = sums.w;
        }
    };

    __device__ Rows rows(int unit, int warp) const {
        const int first = 64 * unit + 16 * warp;
        return {out + (i64)blockIdx.y * num_tokens * width + first + lane_id() / 4, width, first < width};
    }
};

// Pairs of a head's two halves: queries and keys are rotated, keys and values go into the cache.
struct Rotate {
    u16 *queries, *keys, *values;  // [tokens, num_queries * dim]; [num_keys, positions, dim] each
    const float *cos, *sin;  // [positions, dim / 2]
    const u16* bias;  // [(num_queries + 2 * num_keys) * dim] or null
    const i64* start;  // the first token's position
    i64 head_stride;  // of keys and values
    int num_queries, num_keys, dim;

    struct Rows {
        u16* out;
        const float *cos, *sin;  // of this thread's row
        float2 bias;  // of its pair
        int stride, half;
        bool rotated, inside;

        struct Fetched {
            float cos[2], sin[2];
        };

        __device__ Fetched fetch(Tokens at) const {
            Fetched turn;
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const i64 token = at.first + min(2 * (lane_id() % 4) + i, at.left - 1);
                turn.cos[i] = __ldg(cos + token * half);
                turn.sin[i] = __ldg(sin + token * half);
            }
            return turn;
        }

        __device__ void finish(Tokens at, Fetched turn, float4 sums) const {
            if (!inside) return;
            float first[2] = {sums.x + bias.x, sums.y + bias.x}, second[2] = {sums.z + bias.y, sums.w + bias.y};
            if (rotated)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const float x = first[i], y = second[i];
                    first[i] = x * turn.cos[i] - y * turn.sin[i];
                    second[i] = y * turn.cos[i] + x * turn.sin[i];
                }
            u16* target = out + (i64)at.first * stride;
            store_block(target, stride, at.left, first[0], first[1]);
            store_block(target + half, stride, at.left, second[0], second[1]);
        }
    };

    __device__ Rows rows(int unit, int warp) const {
        const int half = dim / 2, first = 32 * (unit % (dim / 64)) + 8 * warp, row = first + lane_id() / 4;
        const int head = unit / (dim / 64), key = head - num_queries, value = key - num_keys;
        const i64 position = __ldg(start);
        Rows rows;
        rows.inside = value < num_keys;
        rows.rotated = value < 0;
        rows.half = half;
        rows.stride = key < 0 ? num_queries * dim : dim;
        rows.out = key < 0     ? queries + head * dim
                   : value < 0 ? keys + key * head_stride + position * dim
                               : values + value * head_stride + position * dim;
        rows.out += first;
        rows.cos = cos + position * half + row;
        rows.sin = sin + position * half + row;
        rows.bias = {};
        if (bias != nullptr && rows.inside)
            rows.bias = unpack(__ldg(bias + head * dim + row) | __ldg(bias + head * dim + row + half) << 16);
        return rows;
    }
};

// A worker's sums at a group, in the inbox of the block that finishes it.
__device__ __forceinline__ u32 inbox_offset(int split, int group) {
    return ((split * SLICE + group) * WORKERS + threadIdx.x - 128) * sizeof(float4);
}

__device__ __forceinline__ void send(const Sums& sums, u32 inbox) {
#pragma unroll
    for (int split = 0; split < SPLITS; split++) {
        const u32 theirs = address_at(inbox + inbox_offset(split_index(), 0), rank_of(sharing_index(), split));
#pragma unroll
        for (int group = split * SLICE; group < min((split + 1) * SLICE, GROUPS); group++)
            asm volatile(
                "st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                    theirs + (group - split * SLICE) * WORKERS * (u32)sizeof(float4)),
                "f"(sums[4 * group]), "f"(sums[4 * group + 1]), "f"(sums[4 * group + 2]), "f"(sums[4 * group + 3])
                : "memory");
    }
}

__device__ __forceinline__ float4 received(u32 inbox, int group) {
    float4 total = {};
#pragma unroll
    for (int split = 0; split < SPLITS; split++) {
        float4 part;
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(part.x), "=f"(part.y), "=f"(part.z), "=f"(part.w)
                     : "r"(inbox + inbox_offset(split, group)) : "memory");
        total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
    }
    return total;
}

// Workers, behind cluster_arrive_relaxed(): hand the sums to the epilogue, those of all splits together.
template <typename Rows>
__device__ __forceinline__ void finish(const Sums& sums, const Rows& rows, u32 inbox, int num_tokens) {
    typename Rows::Fetched fetched[SLICE];
    auto tokens_of = [&](int group) {
        const int first = blockIdx.z * TOKENS + 8 * group;
        return Tokens{first, num_tokens - first};
    };
    if constexpr (SPLITS > 1) {
        const int first = split_index() * SLICE;
        cluster_wait();  // every ring has been read: inboxes may take its place
        send(sums, inbox);
        cluster_arrive();
#pragma unroll
        for (int i = 0; i < SLICE; i++)
            if (first + i < GROUPS) fetched[i] = rows.fetch(tokens_of(first + i));
        cluster_wait();
#pragma unroll
        for (int i = 0; i < SLICE; i++)
            if (first + i < GROUPS) rows.finish(tokens_of(first + i), fetched[i], received(inbox, i));
    } else {
        constexpr int AHEAD = 2;
#pragma unroll
        for (int group = -AHEAD; group < GROUPS; group++) {
            if (group + AHEAD < GROUPS) fetched[group + AHEAD] = rows.fetch(tokens_of(group + AHEAD));
            if (group >= 0)
                rows.finish(
                    tokens_of(group), fetched[group],
                    {sums[4 * group], sums[4 * group + 1], sums[4 * group + 2], sums[4 * group + 3]});
        }
        cluster_wait();  // no block ends while another may still write or arrive there
    }
}


extern "C" __global__ void __launch_bounds__(WORKERS + 128, 1) product(
    const __grid_constant__ TensorMap weights, const __grid_constant__ TensorMap tokens, int num_tokens, int num_steps,
    int units_a_part, const __grid_constant__ EPILOGUE epilogue, const char* next, int next_rows, int next_pitch, int next_splits) {
    extern __shared__ unsigned char memory[];
    __shared__ u64 barriers[2 * STAGES];
    const Ring ring{
        (shared_address(memory) + 1023) & ~1023u, shared_address(barriers), shared_address(barriers + STAGES)};
    long long* trace = nullptr;
#ifdef TRACE
    if (threadIdx.x == 0 || threadIdx.x == 128) {
        trace = (long long*)next + 8 * (blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z));
        if (threadIdx.x == 0) {
            unsigned sm; asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
            trace[7] = sm;
            STAMP(0);
        }
    }
#endif
    const int first_step = num_steps * blockIdx.y / gridDim.y;
    const int steps = num_steps * (blockIdx.y + 1) / gridDim.y - first_step;
    const Feeder feeder{ring, weights, tokens, first_step, steps, units_a_part};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(ring.full + 8 * stage, 1);
            init_barrier(ring.empty + 8 * stage, WARPGROUPS * SHARING);
        }
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
        feeder.begin();
    }
    cluster_arrive_relaxed();
    cluster_wait();
    asm volatile("griddepcontrol.launch_dependents;");
    const int warpgroup = (int)threadIdx.x / 128 - 1;
    if (warpgroup < 0) {
        if (threadIdx.x == 0) feeder.run(trace);
#ifdef NEXT_CHUNK
        __syncwarp();
        if (threadIdx.x < 32 && next != nullptr) {
            const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z), blocks = gridDim.x * gridDim.y * gridDim.z;
            for (int i = block * 32 + threadIdx.x; i < next_rows * next_splits; i += 32 * blocks) {
                const char* at = next + (i64)(i / next_splits) * next_pitch + (i64)(next_pitch / 128 * (i % next_splits) / next_splits) * 128;
                asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(at), "r"(NEXT_CHUNK) : "memory");
            }
        }
#endif
        __syncwarp();
        for (int i = 0; i < (SPLITS > 1 ? 2 : 1); i++) {  // as the workers do
            cluster_arrive_relaxed();
            cluster_wait();
        }
    } else {
        Sums sums;
        reduce(sums, ring, warpgroup, steps, trace);
        STAMP(4);
        cluster_arrive_relaxed();
        wait_for_kernels_in_front();  // they may still read what the epilogue overwrites
#ifdef NO_FINISH
        if (sums[0] == 123456.75f) out_of_sight[0] = sums[1];
        for (int i = 0; i < (SPLITS > 1 ? 2 : 1); i++) {
            if (i) cluster_arrive_relaxed();
            cluster_wait();
        }
#else
        finish(
            sums, epilogue.rows(blockIdx.x * WARPGROUPS + warpgroup, threadIdx.x / 32 % 4), ring.tiles, num_tokens);
#endif
        STAMP(5);
    }
}
