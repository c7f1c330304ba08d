// State of the asynchronous parts of a Hopper block: mbarriers and the copy engine.
#pragma once

#include <memory>

#include "machine.h"

namespace simulator {

// ---- mbarriers ----

// The 8 bytes in shared memory hold only a ticket that leads here.
struct Mbarrier {
    Block* block = nullptr;
    const uint64_t* address = nullptr;
    uint32_t arrivals = 0;
    uint32_t pending = 0;
    int64_t bytes = 0;
    uint64_t phase = 0;
    Thread* waiting = nullptr;
    Site site = {"", 0};
    Clock clock;
};

// The mbarrier that a ticket leads to, or NULL.
Mbarrier* find_mbarrier(Machine& machine, const uint64_t* address);
Text describe_mbarrier(const Mbarrier& barrier);
// Takes bytes that a copy brought off what the phase still waits for.
void complete_bytes(Machine& machine, Mbarrier& barrier, int64_t bytes);

// ---- the copy engine ----

// What a TensorMap holds in the simulator.
struct TensorLayout {
    uint32_t magic;
    uint8_t element_bytes;
    uint8_t is_float;
    uint8_t rank;
    uint8_t swizzle_bytes;
    unsigned char* base;
    uint32_t sizes[4];
    uint64_t strides[4];
    uint16_t box[4];
};
static_assert(sizeof(TensorLayout) <= 128);
constexpr uint32_t tensor_magic = 0x74656d70;

enum class CopyKind : uint8_t { load, store, add };

// One copy that was started. Without a map (`rank` 0) it moves `bytes` contiguous bytes.
struct EngineCopy {
    CopyKind kind;
    bool source_read = false;
    TensorLayout layout;
    int coordinate[4];
    unsigned char* global;
    unsigned char* shared;
    uint32_t bytes;
    Block* block;
    Mbarrier* barrier;
    Thread* thread;
    uint32_t group;
    Site site;
    Clock clock;
    std::vector<unsigned char> data;
};

struct Engine {
    // Owned by pointer, so that a copy moves in the queue without its data.
    std::vector<std::unique_ptr<EngineCopy>> queue;
    std::vector<std::unique_ptr<EngineCopy>> spare;
    const EngineCopy* working = nullptr;
    std::vector<std::unique_ptr<Mbarrier>> mbarriers;
    uint32_t mbarrier_count = 0;
    // Unsuccessful looks at an mbarrier since anything moved.
    uint32_t spins = 0;
    Barrier cluster;
    Clock cluster_clock;
};

// Lets the engine take one step of a copy, any of them. False when it has nothing to do.
bool advance_engine(Machine& machine);
// At the end of a cluster: finishes the stores; a load that nobody waited for is an error.
void drain_engine(Machine& machine);
void check_bulk_exit(Thread& thread);

}  // namespace simulator
