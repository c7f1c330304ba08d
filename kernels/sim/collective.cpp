// What the lanes of a warp and the threads of a block do together: shuffles, votes, barriers.
//
// A warp collective is keyed by its mask; every lane must come from the same source line. Results are computed once, by
// the lane that arrives last, into the records of all.
#include "machine.h"

#include <algorithm>

namespace simulator {

void rendezvous(Execute execute, const char* what, uint32_t mask, void* record, Site site) {
    Thread& self = here();
    Warp& warp = *self.warp;
    Machine& machine = *self.block->machine;
    const uint32_t bit = 1u << self.lane;
    if (!(mask & bit)) {
        machine.fail(&self, site, "%s: the mask %08x does not name the calling lane", what, mask);
    }
    if (mask & ~warp.alive) {
        machine.fail(&self, site, "%s: the mask %08x names lanes %s, which have exited or do not exist", what, mask,
                     describe_lanes(mask & ~warp.alive).c_str());
    }
    Rendezvous* meeting = nullptr;
    for (uint32_t i = 0; i < warp.pending; i++) {
        Rendezvous& other = warp.rendezvous[i];
        if (!(other.mask & mask)) continue;
        if (other.mask != mask || other.execute != execute || !(other.site == site)) {
            machine.fail(&self, site,
                         "divergence in warp %u: this lane reached %s with mask %08x, while lanes %s wait at %s with mask "
                         "%08x (%s)",
                         warp.index, what, mask, describe_lanes(other.arrived).c_str(), other.what, other.mask,
                         describe_site(other.site).c_str());
        }
        meeting = &other;
        break;
    }
    if (meeting == nullptr) {
        meeting = &warp.rendezvous[warp.pending++];
        meeting->mask = mask;
        meeting->arrived = 0;
        meeting->execute = execute;
        meeting->what = what;
        meeting->site = site;
    }
    meeting->records[self.lane] = record;
    meeting->arrived |= bit;
    if (meeting->arrived != mask) {
        machine.block_current(self, what, site);
        return;
    }
    execute(meeting->records, mask, machine);
    if (mask == warp.alive) {
        if (machine.watched) watch_warp(warp);
        if (machine.counted) count_warp(warp);
    }
    for (uint32_t rest = mask & ~bit; rest != 0; rest &= rest - 1) machine.wake(warp.threads[__builtin_ctz(rest)]);
    warp.pending--;
    if (meeting != &warp.rendezvous[warp.pending]) *meeting = warp.rendezvous[warp.pending];
}

void check_warp_exit(Thread& thread) {
    Warp& warp = *thread.warp;
    for (uint32_t i = 0; i < warp.pending; i++) {
        const Rendezvous& meeting = warp.rendezvous[i];
        if (meeting.mask >> thread.lane & 1) {
            thread.block->machine->fail(&thread, {"", 0},
                                        "divergence: the thread exited, while lanes %s of its warp wait for it at %s (%s)",
                                        describe_lanes(meeting.arrived).c_str(), meeting.what,
                                        describe_site(meeting.site).c_str());
        }
    }
}

// ---- shuffles and votes ----

namespace {

struct ValueRecord {
    uint64_t value;
    uint64_t result;
    uint32_t source;
    uint64_t (*combine)(uint64_t, uint64_t);
};

template <typename Body>
void each_lane(void* const* records, uint32_t mask, Body body) {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
        const uint32_t lane = uint32_t(__builtin_ctz(rest));
        body(lane, *static_cast<ValueRecord*>(records[lane]));
    }
}

void execute_shuffle(void* const* records, uint32_t mask, Machine&) {
    each_lane(records, mask, [&](uint32_t, ValueRecord& record) {
        record.result = static_cast<ValueRecord*>(records[record.source])->value;
    });
}

void execute_ballot(void* const* records, uint32_t mask, Machine&) {
    uint64_t bits = 0;
    each_lane(records, mask, [&](uint32_t lane, ValueRecord& record) { bits |= (record.value & 1) << lane; });
    each_lane(records, mask, [&](uint32_t, ValueRecord& record) { record.result = bits; });
}

void execute_reduce(void* const* records, uint32_t mask, Machine&) {
    bool first = true;
    uint64_t total = 0;
    each_lane(records, mask, [&](uint32_t, ValueRecord& record) {
        total = first ? record.value : record.combine(total, record.value);
        first = false;
    });
    each_lane(records, mask, [&](uint32_t, ValueRecord& record) { record.result = total; });
}

void execute_match(void* const* records, uint32_t mask, Machine&) {
    each_lane(records, mask, [&](uint32_t, ValueRecord& record) {
        record.result = 0;
        each_lane(records, mask, [&](uint32_t lane, ValueRecord& other) {
            if (other.value == record.value) record.result |= uint64_t(1) << lane;
        });
    });
}

void execute_nothing(void* const*, uint32_t, Machine&) {}

// The lane that a shuffle reads, as the PTX manual defines it for a segment of `width` lanes.
uint32_t source_lane(ShuffleMode mode, uint32_t lane, uint32_t argument, uint32_t width) {
    const uint32_t first = lane & ~(width - 1), last = first + width - 1;
    switch (mode) {
        case ShuffleMode::index: return first | (argument & (width - 1));
        case ShuffleMode::up: return lane >= first + argument ? lane - argument : lane;
        case ShuffleMode::down: return lane + argument <= last ? lane + argument : lane;
        case ShuffleMode::exclusive_or: return (lane ^ argument) <= last ? lane ^ argument : lane;
    }
    return lane;
}

}  // namespace

uint64_t shuffle(ShuffleMode mode, uint32_t mask, uint64_t value, uint32_t argument, int width, Site site) {
    Thread& self = here();
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
        self.block->machine->fail(&self, site, "shuffle: the width %d is no power of two up to 32", width);
    }
    ValueRecord record = {value, 0, source_lane(mode, self.lane, argument, uint32_t(width)), nullptr};
    if (record.source > 31 || !(mask >> record.source & 1)) {
        self.block->machine->fail(&self, site, "shuffle: reads lane %u, which the mask %08x does not name", record.source,
                                  mask);
    }
    rendezvous(execute_shuffle, "shuffle", mask, &record, site);
    return record.result;
}

uint32_t ballot(uint32_t mask, bool predicate, Site site) {
    ValueRecord record = {predicate, 0, 0, nullptr};
    rendezvous(execute_ballot, "vote", mask, &record, site);
    return uint32_t(record.result);
}

uint64_t reduce(uint32_t mask, uint64_t value, uint64_t (*combine)(uint64_t, uint64_t), Site site) {
    ValueRecord record = {value, 0, 0, combine};
    rendezvous(execute_reduce, "warp reduction", mask, &record, site);
    return record.result;
}

uint32_t match_any(uint32_t mask, uint64_t value, Site site) {
    ValueRecord record = {value, 0, 0, nullptr};
    rendezvous(execute_match, "match", mask, &record, site);
    return uint32_t(record.result);
}

bool elect(uint32_t mask, Site site) {
    ValueRecord record = {0, 0, 0, nullptr};
    rendezvous(execute_nothing, "elect", mask, &record, site);
    return here().lane == uint32_t(__builtin_ctz(mask));
}

void synchronize_warp(uint32_t mask, Site site) {
    ValueRecord record = {0, 0, 0, nullptr};
    rendezvous(execute_nothing, "warp barrier", mask, &record, site);
}

// ---- barriers of the block ----

namespace {

constexpr const char* block_barrier = "__syncthreads";

void complete_barrier(Machine& machine, Barrier& barrier) {
    Thread* thread = barrier.waiting;
    while (thread != nullptr) {
        Thread* next = thread->next_waiting;
        if (machine.watched) watch_acquire(*thread, barrier.clock);
        if (machine.counted) count_warp(*thread->warp);
        machine.wake(*thread);
        thread = next;
    }
    barrier = Barrier();
}

// Appends to the list of waiting threads, in order of arrival.
void wait_in(Barrier& barrier, Thread& self) {
    self.next_waiting = nullptr;
    Thread** end = &barrier.waiting;
    if (barrier.last != nullptr) end = &barrier.last->next_waiting;
    *end = &self;
    barrier.last = &self;
}

// Counts `threads` more arrivals; true when the barrier is complete.
bool count_arrival(Thread& self, uint32_t id, uint32_t expected, const char* what, Site site) {
    Machine& machine = *self.block->machine;
    Barrier& barrier = self.block->barriers[id];
    if (barrier.arrived == 0) {
        barrier.expected = expected;
        barrier.what = what;
        barrier.site = site;
    } else if (barrier.expected != expected) {
        machine.fail(&self, site, "barrier %u: this thread expects %u threads, earlier ones expect %u (%s)", id, expected,
                     barrier.expected, describe_site(barrier.site).c_str());
    }
    if (what != block_barrier) watch_release(self, barrier.clock);
    barrier.arrived++;
    return barrier.arrived == barrier.expected;
}

}  // namespace

int synchronize_block_count(int predicate, Site site) {
    Thread& self = here();
    Block& block = *self.block;
    Machine& machine = *block.machine;
    Barrier& barrier = block.barriers[0];
    if (block.exited > 0) {
        machine.fail(&self, site, "__syncthreads can not complete: %u of the %u threads of the block have exited",
                     block.exited, block.thread_count);
    }
    if (barrier.arrived != 0 &&
        (barrier.what != block_barrier || !(barrier.site == site))) {
        machine.fail(&self, site, "divergence: this thread reached __syncthreads, while %u threads wait at %s (%s)",
                     barrier.arrived, barrier.what, describe_site(barrier.site).c_str());
    }
    if (count_arrival(self, 0, block.thread_count, block_barrier, site)) {
        block.last_predicate_count = barrier.predicate_count + (predicate != 0);
        complete_barrier(machine, barrier);
        watch_block(block);
    } else {
        barrier.predicate_count += predicate != 0;
        wait_in(barrier, self);
        machine.block_current(self, block_barrier, site);
    }
    return int(block.last_predicate_count);
}

void synchronize_block(Site site) { synchronize_block_count(0, site); }

namespace {

void check_named(Thread& self, uint32_t id, uint32_t threads, Site site) {
    if (id > 15) self.block->machine->fail(&self, site, "named barrier %u: there are 16, 0 to 15", id);
    if (threads == 0 || threads % 32 != 0 || threads > self.block->thread_count) {
        self.block->machine->fail(&self, site, "named barrier %u: %u threads is no multiple of 32 within the block", id,
                                  threads);
    }
}

}  // namespace

void synchronize_named(uint32_t id, uint32_t threads, Site site) {
    Thread& self = here();
    check_named(self, id, threads, site);
    Machine& machine = *self.block->machine;
    Barrier& barrier = self.block->barriers[id];
    if (count_arrival(self, id, threads, "named barrier", site)) {
        watch_acquire(self, barrier.clock);
        complete_barrier(machine, barrier);
    } else {
        wait_in(barrier, self);
        machine.block_current(self, "named barrier", site, id);
    }
}

void arrive_named(uint32_t id, uint32_t threads, Site site) {
    Thread& self = here();
    check_named(self, id, threads, site);
    if (count_arrival(self, id, threads, "named barrier", site)) {
        complete_barrier(*self.block->machine, self.block->barriers[id]);
    }
}

void check_barrier_exit(Thread& thread) {
    const Barrier& barrier = thread.block->barriers[0];
    if (barrier.arrived != 0 && barrier.what == block_barrier) {
        thread.block->machine->fail(&thread, {"", 0}, "the thread exited, while %u threads wait for it at __syncthreads (%s)",
                                    barrier.arrived, describe_site(barrier.site).c_str());
    }
}

void trap(const char* message, Site site) {
    Thread& self = here();
    self.block->machine->fail(&self, site, "%s", message);
}

void note_vector(const void* address, size_t bytes, bool write, Site site) {
    Thread& self = here();
    if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
        self.block->machine->fail(&self, site, "misaligned vector %s: address %p is no multiple of %zu", write ? "store" : "load",
                                  address, bytes);
    }
    count_vector(self, address, bytes, write, site);
}

}  // namespace simulator
