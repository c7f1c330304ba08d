// Stacks that simulated threads run on, and the switch between them.
//
// The switch is hand-written: it saves the registers that a function call must preserve and nothing else (no signal
// mask, no floating-point control word, which kernels do not change).
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define TEMPER_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TEMPER_ADDRESS_SANITIZER 1
#endif
#endif
#ifndef TEMPER_ADDRESS_SANITIZER
#define TEMPER_ADDRESS_SANITIZER 0
#endif

namespace simulator {

// A stack that is not running: where to continue, and for AddressSanitizer where the stack lies.
struct Context {
    void* stack_pointer = nullptr;
    const void* stack_bottom = nullptr;
    size_t stack_size = 0;
    void* fake_stack = nullptr;
};

// A stack with a guard page below it.
struct Fiber {
    Context context;
    unsigned char* mapping = nullptr;
    // How far below its top the stack begins: different for neighbours, so that their hot lines share no cache set.
    size_t color = 0;
};

// Maps a new stack. NULL when the host has no memory left.
Fiber* create_fiber();
void destroy_fiber(Fiber* fiber);

// Prepares the fiber so that switching to it calls `entry`, which must never return.
void prepare_fiber(Fiber* fiber, void (*entry)());

// Leaves the running stack, whose place is kept in `from`, and continues `to`. With `abandon`, the running stack will
// never be continued.
void switch_context(Context& from, Context& to, bool abandon = false);

// To be called first thing on a stack that was entered through `entry`.
void entered_fiber();

// The same on a stack that was entered by other means than a switch.
void entered_landing(const void* bottom, size_t bytes);

// Whether the address lies in the guard page below the stack.
bool in_stack_guard(const Fiber* fiber, const void* address);

}  // namespace simulator
