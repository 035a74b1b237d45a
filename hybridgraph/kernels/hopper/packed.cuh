// Packed weights in a thread's registers: unpacked, and exceptions put in their place (kernels/packed.py).
#pragma once

#include "ptx.cuh"

constexpr int TILE_BYTES = 1536;  // 16 rows by 64 columns
constexpr float UNSCALED = 1.0f / 8;  // what is packed is the weight times 8

// A tile's sixteen registers: fragment A of four times 16 columns, each of four registers.
struct Fragments {
    u32 of[16];
};

// Exceptions of one tile: entries place << 16 | half; a place is register << 6 | lane << 1 | upper half.
struct Exceptions {
    const u32* entries;
    int count;
};

// Four registers from three words.
__device__ __forceinline__ void unpack(u32 (&to)[16], int at, u32 w0, u32 w1, u32 w2) {
    to[at] = w0 & 0xBFF8BFF8;
    to[at + 1] = w1 & 0xBFF8BFF8;
    to[at + 2] = w2 & 0xBFF8BFF8;
    to[at + 3] = (w0 << 1 & 0x80008000) | (w0 << 11 & 0x38003800) | (w1 << 8 & 0x07000700) | (w2 << 5 & 0x00E000E0) |
                 (w1 >> 10 & 0x00100010) | (w2 >> 11 & 0x00080008);
}

// This lane's part of a tile in shared memory: three pieces of 16 bytes.
__device__ __forceinline__ Fragments load_tile(u32 tile) {
    u32 w[12];
#pragma unroll
    for (int piece = 0; piece < 3; piece++)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[4 * piece]), "=r"(w[4 * piece + 1]), "=r"(w[4 * piece + 2]), "=r"(w[4 * piece + 3])
                     : "r"(tile + 512 * piece + 16 * (threadIdx.x % 32)));
    Fragments fragments;
#pragma unroll
    for (int k = 0; k < 4; k++) unpack(fragments.of, 4 * k, w[3 * k], w[3 * k + 1], w[3 * k + 2]);
    return fragments;
}

// Rare: about one tile in a hundred has any.
__device__ __forceinline__ void patch(Fragments& fragments, const Exceptions& exceptions) {
    for (int i = 0; i < exceptions.count; i++) {
        const u32 entry = __ldg(exceptions.entries + i), place = entry >> 16;
        if ((place >> 1 & 31) != threadIdx.x % 32) continue;
        const u32 selector = place & 1 ? 0x5410 : 0x3254;
        // In assembly: the compiler would move the registers to local memory to index them.
#pragma unroll
        for (int r = 0; r < 16; r++)
            asm("{.reg .pred here; setp.eq.u32 here, %1, %2; @here prmt.b32 %0, %0, %3, %4;}"
                : "+r"(fragments.of[r])
                : "r"(place >> 6), "r"(r), "r"(entry), "r"(selector));
    }
}
