// The copy engine: tiles and bulk copies between global and shared memory, carried out at later, random times.
//
// A load poisons its destination when it is started and fills it in one step. A store reads its source in one step, at
// which `.read` waits are satisfied, and writes global memory in another.
#include <algorithm>

#include "hopper.h"

namespace simulator {

namespace {

uint64_t swizzled(uint64_t offset, uint32_t swizzle_bytes) {
    const uint64_t mask = swizzle_bytes == 0 ? 0 : swizzle_bytes / 16 - 1;
    return offset ^ (offset >> 7 & mask) << 4;
}

uint32_t tile_bytes(const TensorLayout& layout) {
    uint32_t bytes = layout.element_bytes;
    for (int i = 0; i < layout.rank; i++) bytes *= layout.box[i];
    return bytes;
}

// Calls body(global address or NULL where out of bounds, shared address, bytes) for every element of a tile, or for
// pieces of 16 bytes where there is no map.
template <typename Body>
void each_piece(const EngineCopy& copy, Body body) {
    if (copy.layout.rank == 0) {
        for (uint32_t at = 0; at < copy.bytes; at += 16) body(copy.global + at, copy.shared + at, 16u);
        return;
    }
    const TensorLayout& layout = copy.layout;
    unsigned char* arena = copy.block->shared;
    const uint64_t start = uint64_t(copy.shared - arena);
    uint32_t counts[4] = {1, 1, 1, 1};
    for (int i = 0; i < layout.rank; i++) counts[i] = layout.box[i];
    const uint32_t row_bytes = counts[0] * layout.element_bytes;
    uint64_t row = 0;
    for (uint32_t l = 0; l < counts[3]; l++) {
        for (uint32_t k = 0; k < counts[2]; k++) {
            for (uint32_t j = 0; j < counts[1]; j++, row++) {
                const int64_t index[4] = {0, copy.coordinate[1] + int64_t(j), copy.coordinate[2] + int64_t(k),
                                          copy.coordinate[3] + int64_t(l)};
                bool inside = true;
                unsigned char* line = layout.base;
                for (int i = 1; i < layout.rank; i++) {
                    inside = inside && index[i] >= 0 && index[i] < int64_t(layout.sizes[i]);
                    line += inside ? uint64_t(index[i]) * layout.strides[i] : 0;
                }
                for (uint32_t at = 0; at < row_bytes; at += layout.element_bytes) {
                    const int64_t column = copy.coordinate[0] + int64_t(at / layout.element_bytes);
                    const bool valid = inside && column >= 0 && column < int64_t(layout.sizes[0]);
                    body(valid ? line + column * layout.element_bytes : nullptr,
                         arena + swizzled(start + row * row_bytes + at, layout.swizzle_bytes), layout.element_bytes);
                }
            }
        }
    }
}

void add_piece(const EngineCopy& copy, unsigned char* to, const unsigned char* from, uint32_t bytes) {
    if (copy.layout.rank != 0 && !copy.layout.is_float) {
        uint16_t have, more;
        std::memcpy(&have, to, 2);
        std::memcpy(&more, from, 2);
        const float sum = std::bit_cast<float>(uint32_t(have) << 16) + std::bit_cast<float>(uint32_t(more) << 16);
        const uint32_t bits = std::bit_cast<uint32_t>(sum);
        have = uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
        if (sum != sum) have = 0x7fff;
        std::memcpy(to, &have, 2);
        return;
    }
    for (uint32_t at = 0; at < bytes; at += 4) {
        float have, more;
        std::memcpy(&have, to + at, 4);
        std::memcpy(&more, from + at, 4);
        have += more;
        std::memcpy(to + at, &have, 4);
    }
}

void finish_load(Machine& machine, EngineCopy& copy) {
    each_piece(copy, [&](const unsigned char* global, unsigned char* shared, uint32_t bytes) {
        if (global != nullptr) {
            count_copied(machine, global, bytes, false);
            std::memcpy(shared, global, bytes);
        } else {
            std::memset(shared, 0, bytes);
        }
    });
    watch_join(copy.barrier->clock, copy.clock);
    complete_bytes(machine, *copy.barrier, copy.bytes);
}

void read_source(EngineCopy& copy) {
    watch_async_read(*copy.thread, *copy.block, copy.shared, copy.bytes, "the copy engine", copy.site);
    copy.data.clear();
    each_piece(copy, [&](const unsigned char*, const unsigned char* shared, uint32_t bytes) {
        copy.data.insert(copy.data.end(), shared, shared + bytes);
    });
    copy.source_read = true;
}

void finish_store(Machine& machine, EngineCopy& copy) {
    const unsigned char* from = copy.data.data();
    each_piece(copy, [&](unsigned char* global, unsigned char*, uint32_t bytes) {
        if (global != nullptr && copy.kind == CopyKind::add) count_copied(machine, global, bytes, false);
        if (global != nullptr) count_copied(machine, global, bytes, true);
        if (global != nullptr && copy.kind == CopyKind::add) {
            add_piece(copy, global, from, bytes);
        } else if (global != nullptr) {
            std::memcpy(global, from, bytes);
        }
        from += bytes;
    });
}

void wake_waiter(Machine& machine, Thread& thread) {
    if (!thread.waits_for_bulk) return;
    thread.waits_for_bulk = false;
    machine.wake(thread);
}

void step(Machine& machine, size_t index) {
    Engine& engine = *machine.engine;
    EngineCopy& copy = *engine.queue[index];
    engine.spins = 0;
    engine.working = &copy;
    if (copy.kind != CopyKind::load && !copy.source_read) {
        read_source(copy);
        engine.working = nullptr;
        wake_waiter(machine, *copy.thread);
        return;
    }
    if (copy.kind == CopyKind::load) {
        finish_load(machine, copy);
    } else {
        finish_store(machine, copy);
    }
    engine.working = nullptr;
    Thread& thread = *copy.thread;
    engine.spare.push_back(std::move(engine.queue[index]));
    engine.queue.erase(engine.queue.begin() + std::ptrdiff_t(index));
    wake_waiter(machine, thread);
}

// A new entry of the queue with what all kinds of copies have in common.
EngineCopy& start_copy(Thread& self, CopyKind kind, unsigned char* shared, uint32_t bytes, Site site) {
    Engine& engine = *self.block->machine->engine;
    if (engine.spare.empty()) engine.spare.push_back(std::make_unique<EngineCopy>());
    engine.queue.push_back(std::move(engine.spare.back()));
    engine.spare.pop_back();
    EngineCopy& copy = *engine.queue.back();
    copy.kind = kind;
    copy.source_read = false;
    copy.layout.rank = 0;
    copy.shared = shared;
    copy.bytes = bytes;
    copy.block = self.block;
    copy.barrier = nullptr;
    copy.thread = &self;
    copy.group = self.bulk_group;
    copy.site = site;
    copy.clock = Clock();
    count_tile(*self.block->machine, bytes);
    watch_release(self, copy.clock);
    return copy;
}

void check_tile(Thread& self, const void* shared, uint32_t bytes, uint32_t alignment, const char* what, Site site) {
    Machine& machine = *self.block->machine;
    const ptrdiff_t offset = static_cast<const unsigned char*>(shared) - self.shared;
    if (block_of_shared(machine, shared, bytes) != self.block) {
        machine.fail(&self, site, "%s: a tile of %u bytes at shared offset %td is not within the %u bytes of shared memory", what,
                     bytes, offset, self.block->shared_bytes);
    }
    if (offset % alignment != 0) {
        machine.fail(&self, site, "misaligned %s: shared offset %td is no multiple of %u", what, offset, alignment);
    }
}

const TensorLayout& check_map(Thread& self, const void* map, int rank, const char* what, Site site) {
    const TensorLayout* layout = static_cast<const TensorLayout*>(map);
    Machine& machine = *self.block->machine;
    if (layout->magic != tensor_magic) machine.fail(&self, site, "%s: the tensor map was never encoded", what);
    if (layout->rank != rank) {
        machine.fail(&self, site, "%s: %d coordinates for a tensor map of %u dimensions", what, rank, layout->rank);
    }
    return *layout;
}

void set_tile(EngineCopy& copy, const TensorLayout& layout, const int* coordinate, int rank) {
    copy.layout = layout;
    for (int i = 0; i < 4; i++) copy.coordinate[i] = i < rank ? coordinate[i] : 0;
}

Mbarrier* barrier_of_load(Thread& self, const uint64_t* address, const char* what, Site site) {
    Machine& machine = *self.block->machine;
    Mbarrier* barrier =
        block_of_shared(machine, address, 8) == self.block ? find_mbarrier(machine, address) : nullptr;
    if (barrier == nullptr) {
        machine.fail(&self, site, "%s: there is no mbarrier at shared offset %td", what,
                     reinterpret_cast<const unsigned char*>(address) - self.shared);
    }
    return barrier;
}

}  // namespace

bool advance_engine(Machine& machine) {
    Engine& engine = *machine.engine;
    if (engine.queue.empty()) return false;
    step(machine, machine.random.below(uint32_t(engine.queue.size())));
    return true;
}

void drain_engine(Machine& machine) {
    Engine& engine = *machine.engine;
    while (!machine.failed && !engine.queue.empty()) {
        const EngineCopy& copy = *engine.queue[0];
        if (copy.kind == CopyKind::load) {
            machine.fail_after(copy.thread, copy.site, "this load was still in flight when the block ended");
        } else {
            step(machine, 0);
        }
    }
    for (uint32_t i = 0; !machine.failed && i < engine.mbarrier_count; i++) {
        const Mbarrier& barrier = *engine.mbarriers[i];
        if (barrier.bytes == 0) continue;
        machine.fail_after(nullptr, barrier.site, "the block ended with bytes outstanding at a wait%s",
                           describe_mbarrier(barrier).c_str());
    }
    if (machine.failed) engine.queue.clear();
}

void check_bulk_exit(Thread& thread) {
    for (const auto& copy : thread.block->machine->engine->queue) {
        if (copy->thread == &thread && copy->kind != CopyKind::load && !copy->source_read) {
            thread.block->machine->fail(&thread, copy->site,
                                        "the thread exited while the copy engine may still read shared memory for it "
                                        "(bulk_wait_read is missing)");
        }
    }
}

void fence_proxy_async(Site) { watch_proxy_fence(here()); }

void tma_load(void* tile, const void* map, uint64_t* address, const int* coordinate, int rank, Site site) {
    Thread& self = here();
    const TensorLayout& layout = check_map(self, map, rank, "tma_load", site);
    const uint32_t bytes = tile_bytes(layout);
    check_tile(self, tile, bytes, 128, "tma_load", site);
    Mbarrier* barrier = barrier_of_load(self, address, "tma_load", site);
    watch_async_write(self, tile, bytes, site);
    EngineCopy& copy = start_copy(self, CopyKind::load, static_cast<unsigned char*>(tile), bytes, site);
    set_tile(copy, layout, coordinate, rank);
    copy.barrier = barrier;
    std::memset(tile, 0xff, bytes);
}

void tma_store(const void* map, const void* tile, const int* coordinate, int rank, bool add, Site site) {
    Thread& self = here();
    const char* what = add ? "tma_reduce_add" : "tma_store";
    const TensorLayout& layout = check_map(self, map, rank, what, site);
    const uint32_t bytes = tile_bytes(layout);
    check_tile(self, tile, bytes, 128, what, site);
    watch_async_read(self, *self.block, tile, bytes, what, site);
    unsigned char* shared = static_cast<unsigned char*>(const_cast<void*>(tile));
    EngineCopy& copy = start_copy(self, add ? CopyKind::add : CopyKind::store, shared, bytes, site);
    set_tile(copy, layout, coordinate, rank);
}

namespace {

void check_bulk(Thread& self, const void* global, const void* shared, uint32_t bytes, const char* what, Site site) {
    if (bytes == 0 || bytes % 16 != 0 || reinterpret_cast<uintptr_t>(global) % 16 != 0) {
        self.block->machine->fail(&self, site, "misaligned %s: %u bytes at global address %p are no multiples of 16", what, bytes,
                                  global);
    }
    check_tile(self, shared, bytes, 16, what, site);
}

}  // namespace

void bulk_load(void* shared, const void* global, uint32_t bytes, uint64_t* address, Site site) {
    Thread& self = here();
    check_bulk(self, global, shared, bytes, "bulk_load", site);
    Mbarrier* barrier = barrier_of_load(self, address, "bulk_load", site);
    watch_async_write(self, shared, bytes, site);
    EngineCopy& copy = start_copy(self, CopyKind::load, static_cast<unsigned char*>(shared), bytes, site);
    copy.global = static_cast<unsigned char*>(const_cast<void*>(global));
    copy.barrier = barrier;
    std::memset(shared, 0xff, bytes);
}

void bulk_store(void* global, const void* shared, uint32_t bytes, bool add, Site site) {
    Thread& self = here();
    const char* what = add ? "bulk_reduce_add" : "bulk_store";
    check_bulk(self, global, shared, bytes, what, site);
    watch_async_read(self, *self.block, shared, bytes, what, site);
    EngineCopy& copy = start_copy(self, add ? CopyKind::add : CopyKind::store,
                                  static_cast<unsigned char*>(const_cast<void*>(shared)), bytes, site);
    copy.global = static_cast<unsigned char*>(global);
}

void bulk_commit() { here().bulk_group++; }

void bulk_wait(int pending, bool read_only) {
    Thread& self = here();
    Machine& machine = *self.block->machine;
    while (true) {
        const auto& queue = machine.engine->queue;
        const bool waits = std::any_of(queue.begin(), queue.end(), [&](const auto& copy) {
            return copy->thread == &self && copy->kind != CopyKind::load && copy->group + uint32_t(pending) < self.bulk_group &&
                   !(read_only && copy->source_read);
        });
        if (!waits) return;
        self.waits_for_bulk = true;
        machine.block_current(self, "bulk_wait", {"", 0});
    }
}

}  // namespace simulator

using namespace simulator;

extern "C" const char* temper_sim_encode_tensor_map(void* map, int element_type, uint32_t rank, void* base,
                                                    const uint64_t* sizes, const uint64_t* strides_bytes, const uint32_t* box,
                                                    uint32_t swizzle_bytes) {
    TensorLayout layout = {};
    layout.magic = tensor_magic;
    if (element_type != TEMPER_TENSOR_BF16 && element_type != TEMPER_TENSOR_F32) return "tensor map: unknown element type";
    layout.is_float = element_type == TEMPER_TENSOR_F32;
    layout.element_bytes = layout.is_float ? 4 : 2;
    if (rank < 2 || rank > 4) return "tensor map: 2 to 4 dimensions";
    layout.rank = uint8_t(rank);
    if (reinterpret_cast<uintptr_t>(base) % 16 != 0) return "tensor map: the base address is no multiple of 16";
    layout.base = static_cast<unsigned char*>(base);
    if (swizzle_bytes != 0 && swizzle_bytes != 32 && swizzle_bytes != 64 && swizzle_bytes != 128) {
        return "tensor map: the swizzle is 0, 32, 64 or 128 bytes";
    }
    layout.swizzle_bytes = uint8_t(swizzle_bytes);
    for (uint32_t i = 0; i < rank; i++) {
        if (sizes[i] == 0 || sizes[i] > 0xffffffffu) return "tensor map: a size is 0 or above 2^32 - 1";
        if (box[i] == 0 || box[i] > 256) return "tensor map: a side of the box is not 1 to 256";
        layout.sizes[i] = uint32_t(sizes[i]);
        layout.box[i] = uint16_t(box[i]);
        if (i == 0) continue;
        const uint64_t stride = strides_bytes[i - 1];
        if (stride % 16 != 0 || stride >= uint64_t(1) << 40) return "tensor map: a stride is no multiple of 16 below 2^40";
        layout.strides[i] = stride;
    }
    const uint32_t row_bytes = box[0] * layout.element_bytes;
    if (row_bytes % 16 != 0) return "tensor map: the inner side of the box is no multiple of 16 bytes";
    if (swizzle_bytes != 0 && row_bytes > swizzle_bytes) return "tensor map: the inner side of the box exceeds the swizzle";
    std::memset(map, 0, 128);
    std::memcpy(map, &layout, sizeof layout);
    return nullptr;
}
