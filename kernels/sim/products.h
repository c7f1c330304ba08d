// What a warpgroup has in flight between wgmma and wgmma_wait.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "device.h"

namespace simulator {

struct Thread;

// One wgmma of one thread.
struct Product {
    uint32_t slot;
    uint32_t n;
    uint32_t group;
    bool in_registers, a_transposed, b_transposed, accumulate;
    uint64_t a, b;
    uint32_t a_registers[4];
    Site site;
};

constexpr uint32_t accumulator_slots = 12;

struct Accumulator {
    float* d = nullptr;
    uint32_t n = 0;
    uint32_t products = 0;
};

struct ThreadProducts {
    std::vector<Product> queue;
    Accumulator slots[accumulator_slots];
    uint32_t group = 0;
    bool touched = false;
    // wgmma_fence was called since the last wait.
    bool fenced = false;
};

// Four warps. `images` are the accumulators in flight, as 64 x 256 matrices.
struct WarpGroup {
    uint32_t arrived = 0;
    int pending = 0;
    size_t executing = 0;
    Thread* waiting = nullptr;
    Site site = {"", 0};
    std::unique_ptr<float[]> images[accumulator_slots];
};

}  // namespace simulator
