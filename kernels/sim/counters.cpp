// The counts of a launch; see counters.h.
#include "counters.h"

#include <algorithm>

#include "machine.h"

namespace simulator {

namespace {

constexpr uintptr_t sector_bytes = 32;
constexpr uintptr_t bank_bytes = 4;
constexpr uint32_t banks = 32;
constexpr uint64_t mma_flop = 2 * 16 * 8 * 16;

Counting& counting_of(Machine& machine) { return *machine.counting; }

uint64_t place_of(Site site) { return reinterpret_cast<uintptr_t>(site.file) * 0x9e3779b97f4a7c15ull + uint64_t(site.line); }

// The allocation of an address, or NULL: a stack, a constant.
Touched* find_memory(Counting& counting, const unsigned char* byte) {
    Touched* latest = counting.latest;
    if (latest != nullptr && byte >= latest->start && byte < latest->start + latest->bytes) return latest;
    const auto after = std::upper_bound(counting.memory.begin(), counting.memory.end(), byte,
                                        [](const unsigned char* a, const Touched& b) { return a < b.start; });
    if (after == counting.memory.begin()) return nullptr;
    Touched& found = *std::prev(after);
    if (byte >= found.start + found.bytes) return nullptr;
    return counting.latest = &found;
}

// Notes which bytes were read or written; false where the address is not global memory.
bool touch(Counting& counting, const void* address, size_t bytes, bool write) {
    const unsigned char* byte = static_cast<const unsigned char*>(address);
    Touched* memory = find_memory(counting, byte);
    if (memory == nullptr) return false;
    if (memory->touches.empty()) memory->touches.resize(memory->bytes);
    temper_counters& counters = *counting.counters;
    (write ? counters.bytes_written : counters.bytes_read) += bytes;
    const unsigned char flag = write ? TEMPER_WRITTEN : TEMPER_READ;
    const size_t first = size_t(byte - memory->start);
    uint64_t fresh = 0;
    for (size_t at = first; at < std::min(first + bytes, memory->bytes); at++) {
        unsigned char& touches = memory->touches[at];
        if (touches == 0 && !write) touches |= TEMPER_READ_FIRST;
        fresh += !(touches & flag);
        touches |= flag;
    }
    (write ? counters.unique_bytes_written : counters.unique_bytes_read) += fresh;
    return true;
}

uint32_t distinct(uintptr_t* values, uint32_t count) {
    std::sort(values, values + count);
    return uint32_t(std::unique(values, values + count) - values);
}

// Wavefronts in which the banks serve words of shared memory at once: as many as the fullest bank has different words.
uint32_t wavefronts(uintptr_t* words, uint32_t count) {
    const uint32_t different = distinct(words, count);
    uint32_t in_bank[banks] = {};
    uint32_t most = 0;
    for (uint32_t i = 0; i < different; i++) most = std::max(most, ++in_bank[words[i] % banks]);
    return most;
}

// The words of the lanes first..first + lanes that are in the mask; lanes of one phase are served together.
void count_phase(temper_counters& counters, const Request& request, uint32_t first, uint32_t lanes, uint32_t bytes) {
    uintptr_t words[64];
    uint32_t count = 0;
    for (uint32_t lane = first; lane < first + lanes; lane++) {
        if (!(request.mask >> lane & 1)) continue;
        const uintptr_t start = reinterpret_cast<uintptr_t>(request.address[lane]);
        for (uintptr_t word = start / bank_bytes; word <= (start + bytes - 1) / bank_bytes; word++) words[count++] = word;
    }
    if (count == 0) return;
    counters.shared_wavefronts += wavefronts(words, count);
    counters.shared_wavefronts_ideal++;
}

// Up to 4 bytes a lane: the warp at once; 8 bytes: a half of it; 16 bytes: a quarter.
void count_shared(temper_counters& counters, const Request& request, uint32_t bytes) {
    counters.shared_requests++;
    const uint32_t lanes = bytes <= 4 ? 32 : bytes <= 8 ? 16 : 8;
    for (uint32_t first = 0; first < 32; first += lanes) count_phase(counters, request, first, lanes, bytes);
}

void count_global(temper_counters& counters, const Request& request, uint32_t bytes, bool write) {
    uintptr_t sectors[64], starts[32];
    uint32_t sector_count = 0, start_count = 0;
    for (uint32_t lane = 0; lane < 32; lane++) {
        if (!(request.mask >> lane & 1)) continue;
        const uintptr_t start = reinterpret_cast<uintptr_t>(request.address[lane]);
        starts[start_count++] = start;
        sectors[sector_count++] = start / sector_bytes;
        sectors[sector_count++] = (start + bytes - 1) / sector_bytes;
    }
    const uint64_t ideal = (uint64_t(distinct(starts, start_count)) * bytes + sector_bytes - 1) / sector_bytes;
    const uint64_t touched = distinct(sectors, sector_count);
    (write ? counters.store_requests : counters.load_requests)++;
    (write ? counters.store_sectors : counters.load_sectors) += touched;
    (write ? counters.store_sectors_ideal : counters.load_sectors_ideal) += ideal;
}

// The place with this key in the list of the thread's warp, open for counting.
Place& open_place(Counting& counting, Thread& thread, uint64_t key) {
    const uint32_t number = counting.place_numbers.try_emplace(key, uint32_t(counting.place_numbers.size())).first->second;
    WarpRequests& warp = counting.warps[size_t(thread.warp - thread.block->machine->warps.data())];
    if (warp.places.size() <= number) warp.places.resize(number + 1);
    Place& place = warp.places[number];
    if (place.used == 0) warp.open.push_back(number);
    return place;
}

void note_lane(Counting& counting, Thread& thread, const void* address, size_t bytes, bool write, bool shared, uint64_t key) {
    key = (key * 4 + (write ? 2 : 0) + (shared ? 1 : 0)) * 32 + bytes;
    Place& place = open_place(counting, thread, key);
    place.bytes = uint32_t(bytes);
    place.shared = shared;
    place.write = write;
    const uint32_t execution = place.executions[thread.lane]++;
    if (execution >= place.used) {
        place.used = execution + 1;
        if (place.requests.size() < place.used) place.requests.resize(place.used);
        place.requests[execution].mask = 0;
    }
    Request& request = place.requests[execution];
    request.mask |= 1u << thread.lane;
    request.address[thread.lane] = static_cast<const unsigned char*>(address);
}

void count_piece(Thread& thread, const void* address, size_t bytes, bool write, uint64_t place) {
    Counting& counting = counting_of(*thread.block->machine);
    const bool shared = block_of_shared(*thread.block->machine, address, bytes) != nullptr;
    if (!shared && !touch(counting, address, bytes, write)) return;
    // The elements of the vector before have been seen by now.
    thread.vector_bytes = 0;
    note_lane(counting, thread, address, bytes, write, shared, place);
}

}  // namespace

void count_begin(Machine& machine, temper_counters* counters) {
    machine.counted = counters != nullptr;
    if (!machine.counted) return;
    if (!machine.counting) machine.counting = std::make_unique<Counting>();
    Counting& counting = *machine.counting;
    *counters = {};
    counting.counters = counters;
    counting.memory = list_allocations();
    counting.latest = nullptr;
    counting.place_numbers.clear();
    counting.warps.clear();
    counting.warps.resize(machine.warps.size());
    counters->blocks = uint64_t(machine.launch.grid[0]) * machine.launch.grid[1] * machine.launch.grid[2];
}

void count_end(Machine& machine) {
    machine.counted = false;
    if (machine.counting) machine.counting->counters = nullptr;
}

void copy_touches(const Machine& machine, const void* from, size_t bytes, unsigned char* touches) {
    std::fill_n(touches, bytes, 0);
    if (!machine.counting) return;
    const unsigned char* first = static_cast<const unsigned char*>(from);
    for (const Touched& memory : machine.counting->memory) {
        if (memory.touches.empty()) continue;
        const unsigned char* start = std::max(first, memory.start);
        const unsigned char* end = std::min(first + bytes, memory.start + memory.bytes);
        if (start < end) std::copy_n(&memory.touches[size_t(start - memory.start)], end - start, touches + (start - first));
    }
}

void count_access(Thread& thread, const void* address, size_t bytes, bool write, uint64_t place) {
    const unsigned char* byte = static_cast<const unsigned char*>(address);
    // An element of a vector that was counted as a whole.
    if (byte >= thread.vector && byte + bytes <= thread.vector + thread.vector_bytes) return;
    for (size_t at = 0; at < bytes; at += 16) count_piece(thread, byte + at, std::min(bytes - at, size_t(16)), write, place + at);
}

void count_vector(Thread& thread, const void* address, size_t bytes, bool write, Site site) {
    if (!thread.block->machine->counted) return;
    count_piece(thread, address, bytes, write, place_of(site));
    thread.vector = static_cast<const unsigned char*>(address);
    thread.vector_bytes = bytes;
}

void count_copied(Machine& machine, const void* address, size_t bytes, bool write) {
    if (machine.counted) touch(counting_of(machine), address, bytes, write);
}

void count_tile(Machine& machine, uint32_t bytes) {
    if (machine.counted) counting_of(machine).counters->copy_engine_bytes += bytes;
}

void count_ldmatrix(Machine& machine, const unsigned char* const* rows, int matrices) {
    if (!machine.counted) return;
    temper_counters& counters = *counting_of(machine).counters;
    counters.shared_requests++;
    for (int matrix = 0; matrix < matrices; matrix++) {
        uintptr_t words[32];
        for (int i = 0; i < 32; i++) words[i] = reinterpret_cast<uintptr_t>(rows[matrix * 8 + i / 4]) / bank_bytes + uintptr_t(i % 4);
        counters.shared_wavefronts += wavefronts(words, 32);
        counters.shared_wavefronts_ideal++;
    }
}

void count_mma(Machine& machine) {
    if (!machine.counted) return;
    counting_of(machine).counters->mma_instructions++;
    counting_of(machine).counters->tensor_flop += mma_flop;
}

void count_wgmma(Machine& machine, uint32_t n, bool a_in_registers) {
    if (!machine.counted) return;
    temper_counters& counters = *counting_of(machine).counters;
    counters.wgmma_instructions++;
    counters.tensor_flop += 2ull * 64 * n * 16;
    counters.wgmma_shared_bytes += n * 16ull * 2 + (a_in_registers ? 0 : 64 * 16 * 2);
}

void count_exponential() {
    if (running_machine != nullptr && running_machine->counted) counting_of(*running_machine).counters->exponentials++;
}

void count_warp(Warp& warp) {
    Machine& machine = *warp.block->machine;
    if (!machine.counted) return;
    Counting& counting = counting_of(machine);
    WarpRequests& requests = counting.warps[size_t(&warp - machine.warps.data())];
    for (uint32_t number : requests.open) {
        Place& place = requests.places[number];
        for (uint32_t i = 0; i < place.used; i++) {
            if (place.shared) {
                count_shared(*counting.counters, place.requests[i], place.bytes);
            } else {
                count_global(*counting.counters, place.requests[i], place.bytes, place.write);
            }
        }
        place.used = 0;
        std::fill_n(place.executions, 32, 0u);
    }
    requests.open.clear();
    for (uint32_t lane = 0; lane < 32; lane++) {
        if (warp.alive >> lane & 1) warp.threads[lane].vector_bytes = 0;
    }
}

void count_block(Block& block) {
    if (!block.machine->counted) return;
    for (uint32_t i = 0; i < block.warp_count; i++) count_warp(block.warps[i]);
}

}  // namespace simulator
