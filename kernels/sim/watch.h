// Who touched which bytes of shared memory, and in which order threads are known to have run: finds races, reads of
// memory that nobody wrote, and data that the copy engine or wgmma would not see.
//
// Works when kernels are compiled with -fsanitize=thread, whose calls before every load and store watch.cpp defines (no
// sanitizer runtime is linked), and the launch is one of those that are watched (Machine::watch_is_due). Otherwise every
// function here returns at once.
//
// Order is known per warp: a clock counts, for each warp, up to which of its steps an observer has seen. Two accesses to
// a byte, one of them a write, are a race when neither is seen by the other's warp. Whatever one lane has seen counts as
// seen by its warp, so some races are missed and none is invented.
#pragma once

#include <cstdint>

#include "device.h"

namespace simulator {

struct Thread;

constexpr uint32_t clock_warps = 32;

// Steps seen, for each warp of the cluster (at most 32 of them are told apart).
struct Clock {
    uint32_t seen[clock_warps] = {};
};

void watch_begin(Block& block);
void release_shadow(Block& block);

// Accesses of the running thread through an instruction.
void watch_read(Thread& thread, const void* address, size_t bytes, Site site);
void watch_write(Thread& thread, const void* address, size_t bytes, Site site);

// What the copy engine and wgmma read: fails when the bytes were written by ordinary stores without a proxy fence behind
// them, or never.
void watch_async_read(Thread& issuer, Block& block, const void* address, size_t bytes, const char* what, Site site);
// What the copy engine will write, when it is told to.
void watch_async_write(Thread& issuer, const void* address, size_t bytes, Site site);
// The thread executed fence.proxy.async.
void watch_proxy_fence(Thread& thread);

// Ordering: what the thread did so far joins the clock; what the clock knows joins what the thread has seen.
void watch_release(Thread& thread, Clock& clock);
void watch_acquire(Thread& thread, const Clock& clock);
void watch_join(Clock& clock, const Clock& other);
// All lanes of a warp, all threads of a block met.
void watch_warp(Warp& warp);
void watch_block(Block& block);

}  // namespace simulator
