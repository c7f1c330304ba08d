// What a launch does, in counts: sectors, bytes, wavefronts of shared memory, products. A launch is counted when its caller
// gives it a place for the counts; without, every function here returns at once.
//
// Accesses are seen as the watch sees them, through the calls of -fsanitize=thread and through instructions and vectors,
// which say their size themselves. Lanes run one after another, so the accesses of a warp are put together afterwards: the
// k-th execution of one place by each lane, since the lanes last met, is one request.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "device.h"
#include "interface.h"

namespace simulator {

struct Thread;
struct Machine;

// The accesses of a warp at one place, once for each lane that is in the mask.
struct Request {
    uint32_t mask = 0;
    const unsigned char* address[32];
};

// A place in the code with a kind of access, and the executions of it since the lanes last met.
struct Place {
    uint32_t bytes = 0;
    bool shared = false;
    bool write = false;
    uint32_t used = 0;
    uint32_t executions[32] = {};
    std::vector<Request> requests;
};

struct WarpRequests {
    // By the number of the place.
    std::vector<Place> places;
    // Places with executions that are not counted yet.
    std::vector<uint32_t> open;
};

// An allocation at the time of the launch, and what the launch did with each of its bytes.
struct Touched {
    const unsigned char* start;
    size_t bytes;
    std::vector<unsigned char> touches;
};

struct Counting {
    temper_counters* counters = nullptr;
    std::unordered_map<uint64_t, uint32_t> place_numbers;
    std::vector<WarpRequests> warps;
    std::vector<Touched> memory;
    Touched* latest = nullptr;
};

// The allocations of this moment, in order of their addresses.
std::vector<Touched> list_allocations();

void count_begin(Machine& machine, temper_counters* counters);
void count_end(Machine& machine);
// What the latest counted launch did with each of these bytes.
void copy_touches(const Machine& machine, const void* from, size_t bytes, unsigned char* touches);

// An access of the running thread. Places are told apart by `place`.
void count_access(Thread& thread, const void* address, size_t bytes, bool write, uint64_t place);
// The same for an instruction or a vector, whose single elements the compiler's calls may show once more.
void count_vector(Thread& thread, const void* address, size_t bytes, bool write, Site site);
// Bytes of global memory that the copy engine moves.
void count_copied(Machine& machine, const void* address, size_t bytes, bool write);
void count_tile(Machine& machine, uint32_t bytes);
// Rows of 16 bytes, eight a matrix.
void count_ldmatrix(Machine& machine, const unsigned char* const* rows, int matrices);
void count_mma(Machine& machine);
void count_wgmma(Machine& machine, uint32_t n, bool a_in_registers);
// All lanes of the warp met, or the block ended: what they did so far is complete.
void count_warp(Warp& warp);
void count_block(Block& block);

}  // namespace simulator
