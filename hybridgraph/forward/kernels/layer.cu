// What lies between two attentions of a prompt's forward, in one launch, for Hopper: the attention's output projection,
// the residual and norm, gate and up with SwiGLU, down, again residual and norm, and the next layer's projection with
// rotation and cache write. A launch may also consist of the projection alone.
//
// Launched apart, each of these waits for the one in front to drain before it can fill the chip again, and that took
// a third of the time. Here one block stays on each multiprocessor: a thread of it streams the weights of one product
// after another through a ring of shared memory, whether or not the tokens that they meet have been computed, and
// only the tokens wait until every block has told that it finished the step before. So all blocks of a launch must
// run at the same time, and no second launch of this kind beside them: two that each hold half of the chip would
// wait for each other for ever.
//
// Products. Weights are the first operand of the tensor cores: they come in units of 64 rows, one to a warpgroup, and
// the prompt's tokens lie across. A block computes WARPGROUPS units for TOKENS tokens over a share of the reduction.
// Which 64 rows make a unit, the weights' tensor map decides. Where rows belong together in pairs, as gate and up or
// the two halves of a head do, it alternates between both in blocks of 8, so that a thread's sums hold whole pairs.
//
// Blocks work in pairs, a cluster each. A pair computes neighbouring units and shares its loads of the tokens, of
// which each block loads one half for both; or, where EXCHANGE is set and it is the projection, the same units over
// one half of the reduction each, after which each block finishes one half of the tokens.
//
// Compiled by NVRTC for one shape (layer.py), which defines the names in capitals and the functions pack(), unpack()
// and multiply().

using u16 = unsigned short;  // an element, as bits
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct alignas(64) TensorMap {
    u64 opaque[16];
};

constexpr int BLOCK_K = 64;  // columns of a stage: 128 bytes, the row of a swizzled tile
constexpr int UNIT_BYTES = 64 * 128;
constexpr int GROUPS = TOKENS / 8;  // of tokens: a thread has two rows and two tokens of each
constexpr int HALF = (GROUPS + 1) / 2;  // groups that one block of a pair loads, or finishes
constexpr int BOX_BYTES = HALF * 8 * 128;
constexpr int STAGE_BYTES = WARPGROUPS * UNIT_BYTES + 2 * BOX_BYTES;
constexpr int WORKERS = 128 * WARPGROUPS;  // threads that multiply; one more warpgroup feeds them
constexpr u64 EVICT_FIRST = 0x12F0000000000000, EVICT_LAST = 0x14F0000000000000;  // cache policies

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ int lane_id() { return threadIdx.x % 32; }
__device__ __forceinline__ int worker_id() { return threadIdx.x - 128; }

// Barriers of a block.

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

__device__ __forceinline__ void sync_workers() { asm volatile("bar.sync 1, %0;" ::"n"(WORKERS) : "memory"); }

__device__ __forceinline__ void sync_warpgroup() {
    asm volatile("bar.sync %0, 128;" ::"r"(threadIdx.x / 128 + 1) : "memory");
}

// Between the blocks of a pair.

__device__ __forceinline__ u32 rank() {
    u32 rank;
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

// An address of this block's shared memory, in the block of that rank.
__device__ __forceinline__ u32 address_at(u32 address, u32 rank) {
    u32 remote;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(address), "r"(rank));
    return remote;
}

__device__ __forceinline__ void arrive_at(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// What this thread wrote is seen behind pair_wait() in both blocks; relaxed: its barriers alone are.
__device__ __forceinline__ void pair_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
__device__ __forceinline__ void pair_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }
__device__ __forceinline__ void pair_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Between all blocks.

__device__ __forceinline__ void wait_for_kernels_in_front() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// Workers: what they have written is there for every block that waits for `arrivals`, for its TMA too.
__device__ __forceinline__ void tell_all(u32* arrivals) {
    asm volatile("fence.proxy.async;" ::: "memory");
    sync_workers();
    if (worker_id() == 0) asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrivals) : "memory");
}

__device__ __forceinline__ void wait_for_all(const u32* arrivals) {
    u32 arrived;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(arrivals) : "memory");
    while (arrived < gridDim.x);
    asm volatile("fence.proxy.async;" ::: "memory");
}

__device__ __forceinline__ void workers_wait_for_all(const u32* arrivals) {
    if (worker_id() == 0) wait_for_all(arrivals);
    sync_workers();
}

// A product: its operands, and how it is cut into tasks of a pair.
struct Product {
    TensorMap weights, tokens;
    int tasks;  // of all pairs; 0: there is no such product in this launch
    int pieces;  // of the tokens, TOKENS each: neighbouring tasks, which read the same weights
    int row_tasks;  // tasks of one piece and split
    int steps;  // of a task: 64 columns each
    int units_a_part;  // units of 64 rows in one part of the matrix, as the tensor map has it
    bool exchange;  // the pair splits the reduction, not the rows
};

struct Task {
    int block;  // of WARPGROUPS units
    int piece;  // of the tokens
    int split;  // of the reduction

    __device__ Task(const Product& product, int task) {
        piece = task % product.pieces;
        task /= product.pieces;
        const int row_task = task % product.row_tasks;
        block = product.exchange ? row_task : 2 * row_task + rank();
        split = product.exchange ? rank() : task / product.row_tasks;
    }
};

// The ring of stages. A stage is full when its bytes are there, empty when both blocks of the pair have read theirs.
struct Ring {
    u32 tiles, full, empty;  // shared addresses; full and empty: one barrier a stage
    int stage = 0, parity = 0;

    __device__ u32 units() const { return tiles + stage * STAGE_BYTES; }
    __device__ u32 tokens() const { return units() + WARPGROUPS * UNIT_BYTES; }

    __device__ void advance() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// One thread, which fills the ring.
struct Feeder {
    Ring ring;

    // `ready` waits for the tokens; the weights that fit the ring are on their way before.
    template <typename Ready>
    __device__ void feed(const Product& product, Ready ready) {
        bool waited = false;
        for (int number = blockIdx.x / 2; number < product.tasks; number += gridDim.x / 2) {
            const Task task(product, number);
            const int ahead = waited ? 0 : min(product.steps, STAGES);
            Ring behind = ring;
            for (int step = 0; step < ahead; step++) {
                load_units(product, task, step);
                ring.advance();
            }
            if (!waited) ready();
            waited = true;
            for (int step = 0; step < ahead; step++) {
                load_tokens(product, task, step, behind);
                behind.advance();
            }
            for (int step = ahead; step < product.steps; step++) {
                load_units(product, task, step);
                load_tokens(product, task, step, ring);
                ring.advance();
            }
        }
    }

    __device__ void load_units(const Product& product, const Task& task, int step) const {
        wait_for_phase(ring.empty + 8 * ring.stage, ring.parity ^ 1);
        expect_bytes(ring.full + 8 * ring.stage, STAGE_BYTES);
#pragma unroll
        for (int u = 0; u < WARPGROUPS; u++) {
            const int unit = task.block * WARPGROUPS + u;
            asm volatile(
                "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
                " [%0], [%1, {%2, %3, %3, %4, %5}], [%6], %7;" ::"r"(ring.units() + u * UNIT_BYTES),
                "l"(&product.weights), "r"((task.split * product.steps + step) * BLOCK_K), "r"(0),
                "r"(4 * (unit % product.units_a_part)), "r"(unit / product.units_a_part),
                "r"(ring.full + 8 * ring.stage), "l"(EVICT_FIRST) : "memory");
        }
    }

    // One half for both blocks, or both halves for this one.
    __device__ void load_tokens(const Product& product, const Task& task, int step, const Ring& at) const {
        const int column = (task.split * product.steps + step) * BLOCK_K, first = task.piece * TOKENS;
        if (product.exchange)
#pragma unroll
            for (int half = 0; half < 2; half++)
                asm volatile(
                    "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
                    " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(at.tokens() + half * BOX_BYTES), "l"(&product.tokens),
                    "r"(column), "r"(first + half * HALF * 8), "r"(at.full + 8 * at.stage), "l"(EVICT_LAST)
                    : "memory");
        else
            asm volatile(
                "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                ".L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5, %6;" ::"r"(at.tokens() + rank() * BOX_BYTES),
                "l"(&product.tokens), "r"(column), "r"(first + (int)rank() * HALF * 8), "r"(at.full + 8 * at.stage),
                "h"(u16(3)), "l"(EVICT_LAST) : "memory");
    }
};

// The wgmma descriptor of a tile whose rows are 128 bytes, swizzled over 8 of them (PTX ISA, matrix descriptor).
__device__ __forceinline__ u64 descriptor(u32 tile) {
    return (u64{1} << 62) | (u64{1024 >> 4} << 32) | (u64{1} << 16) | ((tile & 0x3FFFF) >> 4);
}

using Sums = float[TOKENS / 2];

// A warpgroup of workers, each of which has its unit of a task.
struct Worker {
    Ring ring;

    // `finish(unit, task, sums)` gets every unit of this warpgroup.
    template <typename Finish>
    __device__ __forceinline__ void multiply_all(const Product& product, Finish finish) {
        for (int number = blockIdx.x / 2; number < product.tasks; number += gridDim.x / 2) {
            const Task task(product, number);
            Sums sums;
            reduce(sums, product.steps);
            finish(task.block * WARPGROUPS + worker_id() / 128, task, sums);
        }
    }

    __device__ __forceinline__ void reduce(Sums& sums, int steps) {
        int before = 0;
        for (int step = 0; step < steps; step++) {
            wait_for_phase(ring.full + 8 * ring.stage, ring.parity);
            const u64 a = descriptor(ring.units() + worker_id() / 128 * UNIT_BYTES), b = descriptor(ring.tokens());
            asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
            for (int k = 0; k < BLOCK_K / 16; k++) multiply(sums, a + 2 * k, b + 2 * k, step + k > 0);
            asm volatile("wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 1;" ::: "memory");
            if (step > 0) release(before);
            before = ring.stage;
            ring.advance();
        }
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        release(before);
    }

    __device__ __forceinline__ void release(int stage) const {
        const int index = threadIdx.x % 128;
        if (index < 2) arrive_at(address_at(ring.empty + 8 * stage, index));
    }
};

// A thread has 2 x 2 sums of a group of tokens: x and y of row lane / 4 of its warp's 16, z and w of the row 8 further
// or paired with it; both of tokens 2 * (lane % 4) and the next.
__device__ __forceinline__ float4 of_group(const Sums& sums, int group) {
    return {sums[4 * group], sums[4 * group + 1], sums[4 * group + 2], sums[4 * group + 3]};
}

__device__ __forceinline__ int warp_in_unit() { return threadIdx.x / 32 % 4; }

// 8 rows by 8 tokens, written as memory has them: `rows` is where the first row of the first token goes.
__device__ __forceinline__ void store_block(u16* rows, int stride, int tokens_left, float first, float second) {
    u32 block = pack(first, second);
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %0;" : "+r"(block));
    const int token = lane_id() / 4;
    if (token < tokens_left) *reinterpret_cast<u32*>(rows + token * stride + 2 * (lane_id() % 4)) = block;
}

// Pairs of gate and up: silu(gate) * up, to out [tokens, width].
__device__ __forceinline__ void store_swiglu(
    u16* out, int width, int num_tokens, int unit, const Task& task, const Sums& sums) {
    const int row = 32 * unit + 8 * warp_in_unit();
    if (row >= width) return;
    auto gated = [](float gate, float up) { return __fdividef(gate, 1.0f + __expf(-gate)) * up; };
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        const float4 four = of_group(sums, group);
        const int token = task.piece * TOKENS + 8 * group;
        store_block(
            out + (i64)token * width + row, width, num_tokens - token, gated(four.x, four.z), gated(four.y, four.w));
    }
}

// Rows in order, over a share of the reduction, to out [SPLITS, tokens, WIDTH].
__device__ __forceinline__ void store_partial(
    float* out, int num_tokens, int unit, const Task& task, const Sums& sums) {
    const int row = 64 * unit + 16 * warp_in_unit() + lane_id() / 4;
    if (64 * unit >= WIDTH) return;
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
        const float4 four = of_group(sums, group);
        const int token = task.piece * TOKENS + 8 * group + 2 * (lane_id() % 4);
        float* target = out + ((i64)task.split * num_tokens + token) * WIDTH + row;
        if (token < num_tokens) target[0] = four.x, target[8] = four.z;
        if (token + 1 < num_tokens) target[WIDTH] = four.y, target[WIDTH + 8] = four.w;
    }
}

// All workers, row by row: hidden += the partial sums; out = its RMSNorm.
__device__ __forceinline__ void add_norm(
    u16* hidden, const float* partial, const u16* weight, u16* out, int num_tokens, float eps) {
    constexpr int VECTORS = (WIDTH / 4 + WORKERS - 1) / WORKERS;  // of 4 elements, a thread's
    __shared__ float squares[WORKERS / 32];
    for (int row = blockIdx.x; row < num_tokens; row += gridDim.x) {
        float4 x[VECTORS];
        float sum = 0;
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = 4 * (worker_id() + i * WORKERS);
            if (at >= WIDTH) continue;
            uint2* old = reinterpret_cast<uint2*>(hidden + (i64)row * WIDTH + at);
            const uint2 packed = __ldcg(old);
            const float2 low = unpack(packed.x), high = unpack(packed.y);
            x[i] = {low.x, low.y, high.x, high.y};
#pragma unroll
            for (int split = 0; split < SPLITS; split++) {
                const float* part = partial + ((i64)split * num_tokens + row) * WIDTH + at;
                const float4 more = __ldcg(reinterpret_cast<const float4*>(part));
                x[i].x += more.x, x[i].y += more.y, x[i].z += more.z, x[i].w += more.w;
            }
            const uint2 rounded = {pack(x[i].x, x[i].y), pack(x[i].z, x[i].w)};
            *old = rounded;
            const float2 first = unpack(rounded.x), second = unpack(rounded.y);
            x[i] = {first.x, first.y, second.x, second.y};
            sum += first.x * first.x + first.y * first.y + second.x * second.x + second.y * second.y;
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (lane_id() == 0) squares[worker_id() / 32] = sum;
        sync_workers();
        sum = 0;
#pragma unroll
        for (int warp = 0; warp < WORKERS / 32; warp++) sum += squares[warp];
        const float scale = rsqrtf(sum / WIDTH + eps);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            const int at = 4 * (worker_id() + i * WORKERS);
            if (at >= WIDTH) continue;
            const uint2 packed = __ldg(reinterpret_cast<const uint2*>(weight + at));
            const float2 low = unpack(packed.x), high = unpack(packed.y);
            *reinterpret_cast<uint2*>(out + (i64)row * WIDTH + at) = {
                pack(x[i].x * scale * low.x, x[i].y * scale * low.y),
                pack(x[i].z * scale * high.x, x[i].w * scale * high.y)};
        }
        sync_workers();  // before `squares` is written again
    }
}

// Where the merged projection goes: queries and keys are rotated, keys and values go into the cache.
struct Rotation {
    u16 *queries, *keys, *values;  // [tokens, num_queries * dim]; [num_keys, positions, dim] each
    const float *cos, *sin;  // [positions, dim / 2]
    const u16* bias;  // [(num_queries + 2 * num_keys) * dim] or null
    const i64* start;  // the first token's position
    i64 head_stride;  // of keys and values
    int num_queries, num_keys, dim;
};

// A unit's rows of the projection, staged in shared memory token by token: first halves of 32 pairs, then second ones.
struct Staged {
    static constexpr int STRIDE = 68;  // floats of a token: neither side has bank conflicts
    u32 tile;

    __device__ void put(int token, float4 sums) const {
        const int row = 8 * warp_in_unit() + lane_id() / 4, pair = token + 2 * (lane_id() % 4);
        put_one(pair, row, sums.x);
        put_one(pair + 1, row, sums.y);
        put_one(pair, 32 + row, sums.z);
        put_one(pair + 1, 32 + row, sums.w);
    }

    __device__ void put_one(int token, int row, float value) const {
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(tile + 4 * (token * STRIDE + row)), "f"(value) : "memory");
    }

    // Eight neighbouring rows.
    __device__ void get(float (&values)[8], int token, int row) const {
#pragma unroll
        for (int i = 0; i < 8; i += 4)
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(values[i]), "=f"(values[i + 1]), "=f"(values[i + 2]), "=f"(values[i + 3])
                         : "r"(tile + 4 * (token * STRIDE + row + i)) : "memory");
    }
};

__device__ __forceinline__ void load_eight(float (&values)[8], const float* from) {
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
        const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
        values[i] = four.x, values[i + 1] = four.y, values[i + 2] = four.z, values[i + 3] = four.w;
    }
}

__device__ __forceinline__ void store_eight(u16* target, const float (&values)[8]) {
    *reinterpret_cast<uint4*>(target) = {
        pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]), pack(values[6], values[7])};
}

__device__ __forceinline__ void add_eight(float (&values)[8], const u16* bias) {
    const uint4 packed = __ldg(reinterpret_cast<const uint4*>(bias));
    const u32 words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float2 both = unpack(words[i]);
        values[2 * i] += both.x, values[2 * i + 1] += both.y;
    }
}

// A warpgroup: `num_tokens` of its staged unit, of which the first is the prompt's `first`. Four threads share a token.
__device__ __forceinline__ void store_rotated(
    const Rotation& to, const Staged& staged, int unit, int first, int num_tokens) {
    const int half = to.dim / 2, row = 8 * (threadIdx.x % 4), pair = 32 * (unit % (to.dim / 64)) + row;
    const int head = unit / (to.dim / 64), key = head - to.num_queries, value = key - to.num_keys;
    if (value >= to.num_keys) return;
    const i64 start = __ldg(to.start);
    const i64 stride = key < 0 ? to.num_queries * to.dim : to.dim;
    u16* out = key < 0     ? to.queries + head * to.dim
               : value < 0 ? to.keys + key * to.head_stride + start * to.dim
                           : to.values + value * to.head_stride + start * to.dim;
#pragma unroll 2
    for (int token = threadIdx.x % 128 / 4; token < num_tokens; token += 32) {
        float x[8], y[8];
        staged.get(x, token, row);
        staged.get(y, token, 32 + row);
        if (to.bias != nullptr) {
            add_eight(x, to.bias + head * to.dim + pair);
            add_eight(y, to.bias + head * to.dim + half + pair);
        }
        if (value < 0) {
            float cos[8], sin[8];
            const i64 at = (start + first + token) * half + pair;
            load_eight(cos, to.cos + at);
            load_eight(sin, to.sin + at);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float turned = x[i] * cos[i] - y[i] * sin[i];
                y[i] = y[i] * cos[i] + x[i] * sin[i];
                x[i] = turned;
            }
        }
        u16* target = out + (first + token) * stride + pair;
        store_eight(target, x);
        store_eight(target + half, y);
    }
}

// The projection's sums. It is a launch's last product and every pair's only task of it, so that the ring may be used
// for other things once both blocks have read it.
__device__ __forceinline__ void finish_projection(
    const Rotation& to, u32 ring, int num_tokens, int unit, const Task& task, const Sums& sums) {
    constexpr int STAGED_TOKENS = 8 * (EXCHANGE ? HALF : GROUPS);
    constexpr u32 STAGED_BYTES = STAGED_TOKENS * Staged::STRIDE * sizeof(float);
    constexpr u32 INBOX_BYTES = EXCHANGE ? HALF * WORKERS * sizeof(float4) : 0;
    static_assert(WARPGROUPS * STAGED_BYTES + INBOX_BYTES <= STAGES * STAGE_BYTES);
    const Staged staged{ring + worker_id() / 128 * STAGED_BYTES};
    int first = 0;  // token of the piece that is staged
    if constexpr (EXCHANGE) {
        const u32 mine = rank();
        const u32 inbox = ring + WARPGROUPS * STAGED_BYTES + worker_id() * sizeof(float4);
        const u32 theirs = address_at(inbox, mine ^ 1);
        pair_arrive_relaxed();
        pair_wait();
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            const float4 four = of_group(sums, group);
            if (group / HALF != mine)
                asm volatile(
                    "st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(
                        theirs + group % HALF * WORKERS * (u32)sizeof(float4)),
                    "f"(four.x), "f"(four.y), "f"(four.z), "f"(four.w) : "memory");
        }
        pair_arrive();
        pair_wait();
#pragma unroll
        for (int group = 0; group < HALF; group++) {
            float4 own = of_group(sums, group), other;
            if (HALF + group < GROUPS && mine == 1) own = of_group(sums, min(HALF + group, GROUPS - 1));
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(other.x), "=f"(other.y), "=f"(other.z), "=f"(other.w)
                         : "r"(inbox + group * WORKERS * (u32)sizeof(float4)) : "memory");
            staged.put(8 * group, {own.x + other.x, own.y + other.y, own.z + other.z, own.w + other.w});
        }
        first = 8 * HALF * mine;
    } else {
        sync_workers();
#pragma unroll
        for (int group = 0; group < GROUPS; group++) staged.put(8 * group, of_group(sums, group));
    }
    sync_warpgroup();
    const int begin = task.piece * TOKENS + first, end = min(begin + STAGED_TOKENS, (task.piece + 1) * TOKENS);
    store_rotated(to, staged, unit, begin, min(end, num_tokens) - begin);
}

struct Layer {
    Product out, gate_up, down, projection;  // a launch without the first has only the last
    Rotation rotation;
    u16 *hidden, *normed, *gated;  // [tokens, WIDTH], the same, [tokens, inner]
    float* partial;  // [SPLITS, tokens, WIDTH]
    const u16 *mlp_norm, *input_norm;
    u32* arrivals;  // [5], zero between launches
    int inner, num_tokens;
    float eps;
};

static_assert(sizeof(Layer) == LAYER_BYTES, "layer.py has another layout");

// What every block tells the others, in this order.
enum { SUMMED, NORMED, GATED, SUMMED_AGAIN, NORMED_AGAIN };

__device__ __forceinline__ void feed(Feeder feeder, const Layer& layer) {
    if (layer.out.tasks == 0) {
        feeder.feed(layer.projection, [] { wait_for_kernels_in_front(); });
        return;
    }
    feeder.feed(layer.out, [] { wait_for_kernels_in_front(); });
    feeder.feed(layer.gate_up, [&] { wait_for_all(layer.arrivals + NORMED); });
    feeder.feed(layer.down, [&] { wait_for_all(layer.arrivals + GATED); });
    feeder.feed(layer.projection, [&] { wait_for_all(layer.arrivals + NORMED_AGAIN); });
    // Every block has arrived there, so none looks at the ones before any more; the next launch begins with zeros.
    if (blockIdx.x == 0)
        for (int i = SUMMED; i < NORMED_AGAIN; i++) layer.arrivals[i] = 0;
}

__device__ __forceinline__ void work(Worker worker, const Layer& layer) {
    const int num_tokens = layer.num_tokens;
    if (layer.out.tasks > 0) {
        auto store = [&](int unit, const Task& task, const Sums& sums) {
            store_partial(layer.partial, num_tokens, unit, task, sums);
        };
        worker.multiply_all(layer.out, store);
        wait_for_kernels_in_front();
        // The launch before has left it; in this one nobody gets there before this block has told the first.
        if (blockIdx.x == 0 && worker_id() == 0) layer.arrivals[NORMED_AGAIN] = 0;
        tell_all(layer.arrivals + SUMMED);
        workers_wait_for_all(layer.arrivals + SUMMED);
        add_norm(layer.hidden, layer.partial, layer.mlp_norm, layer.normed, num_tokens, layer.eps);
        tell_all(layer.arrivals + NORMED);
        worker.multiply_all(layer.gate_up, [&](int unit, const Task& task, const Sums& sums) {
            store_swiglu(layer.gated, layer.inner, num_tokens, unit, task, sums);
        });
        tell_all(layer.arrivals + GATED);
        worker.multiply_all(layer.down, store);
        tell_all(layer.arrivals + SUMMED_AGAIN);
        workers_wait_for_all(layer.arrivals + SUMMED_AGAIN);
        add_norm(layer.hidden, layer.partial, layer.input_norm, layer.normed, num_tokens, layer.eps);
        tell_all(layer.arrivals + NORMED_AGAIN);
    }
    worker.multiply_all(layer.projection, [&](int unit, const Task& task, const Sums& sums) {
        wait_for_kernels_in_front();  // they may still read what is overwritten
        finish_projection(layer.rotation, worker.ring.tiles, num_tokens, unit, task, sums);
    });
}

extern "C" __global__ void __launch_bounds__(WORKERS + 128, 1) layer(const __grid_constant__ Layer layer) {
    extern __shared__ unsigned char memory[];
    __shared__ u64 barriers[2 * STAGES];
    const Ring ring{
        (shared_address(memory) + 1023) & ~1023u, shared_address(barriers), shared_address(barriers + STAGES)};
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; stage++) {
            init_barrier(ring.full + 8 * stage, 1);
            init_barrier(ring.empty + 8 * stage, 2 * WARPGROUPS);
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    pair_arrive_relaxed();
    pair_wait();
    asm volatile("griddepcontrol.launch_dependents;");
    if (threadIdx.x < 128) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == 0) feed(Feeder{ring}, layer);
        __syncwarp();
        if (EXCHANGE && blockIdx.x / 2 < layer.projection.tasks)
            for (int i = 0; i < 2; i++) {  // as the workers do
                pair_arrive_relaxed();
                pair_wait();
            }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 152;");
        work(Worker{ring}, layer);
    }
    pair_arrive_relaxed();
    pair_wait();  // no block ends while the other may still write or arrive there
}
