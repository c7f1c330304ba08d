// Stacks and the switch between them; see fiber.h.
#include "fiber.h"

#include <atomic>
#include <sys/mman.h>

#if TEMPER_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// void temper_simulator_switch(void** save_stack_pointer, void* next_stack_pointer)
//
// Ends in an indirect jump, not a return: the processor predicts returns by the calls that it saw, and these do not
// match across stacks.
extern "C" void temper_simulator_switch(void** save, void* next) asm("temper_simulator_switch");

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl temper_simulator_switch
temper_simulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmpq *%rcx
)");
#elif defined(__aarch64__)
asm(R"(
.text
.p2align 4
.globl temper_simulator_switch
temper_simulator_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    br x30
)");
#else
#error "the simulator switches stacks on x86_64 and aarch64 only"
#endif

namespace simulator {

namespace {

constexpr size_t stack_bytes = TEMPER_ADDRESS_SANITIZER ? 256 * 1024 : 64 * 1024;
// Large, so that a large local array does not reach across it into the stack of a neighbour. Costs addresses, no memory.
constexpr size_t guard_bytes = 512 * 1024;

#if TEMPER_ADDRESS_SANITIZER
// The context that was left by the latest switch, to learn the bounds of stacks that the simulator did not make.
__thread Context* left_context;
#endif

}  // namespace

Fiber* create_fiber() {
    const size_t bytes = stack_bytes + guard_bytes;
    void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) return nullptr;
    mprotect(mapping, guard_bytes, PROT_NONE);
    static std::atomic<size_t> created;
    Fiber* fiber = new Fiber;
    fiber->color = created++ % 9 * 448;
    fiber->mapping = static_cast<unsigned char*>(mapping);
    fiber->context.stack_bottom = fiber->mapping + guard_bytes;
    fiber->context.stack_size = stack_bytes;
    return fiber;
}

void destroy_fiber(Fiber* fiber) {
    munmap(fiber->mapping, stack_bytes + guard_bytes);
    delete fiber;
}

void prepare_fiber(Fiber* fiber, void (*entry)()) {
#if TEMPER_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(fiber->context.stack_bottom, stack_bytes);
    fiber->context.fake_stack = nullptr;
#endif
    unsigned char* top = fiber->mapping + guard_bytes + stack_bytes - fiber->color;
#if defined(__x86_64__)
    // Popped by the switch: six registers, then the address to jump to. A function expects the stack pointer 8 bytes
    // off a multiple of 16, as after a call.
    uint64_t* frame = reinterpret_cast<uint64_t*>(top) - 8;
    for (int i = 0; i < 8; i++) frame[i] = 0;
    frame[6] = reinterpret_cast<uint64_t>(entry);
    fiber->context.stack_pointer = frame;
#else
    uint64_t* frame = reinterpret_cast<uint64_t*>(top) - 20;
    for (int i = 0; i < 20; i++) frame[i] = 0;
    frame[11] = reinterpret_cast<uint64_t>(entry);
    fiber->context.stack_pointer = frame;
#endif
}

void switch_context(Context& from, Context& to, [[maybe_unused]] bool abandon) {
#if TEMPER_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(abandon ? nullptr : &from.fake_stack, to.stack_bottom, to.stack_size);
    left_context = &from;
    temper_simulator_switch(&from.stack_pointer, to.stack_pointer);
    __sanitizer_finish_switch_fiber(from.fake_stack, &left_context->stack_bottom, &left_context->stack_size);
#else
    temper_simulator_switch(&from.stack_pointer, to.stack_pointer);
#endif
}

void entered_fiber() {
#if TEMPER_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(nullptr, &left_context->stack_bottom, &left_context->stack_size);
#endif
}

void entered_landing([[maybe_unused]] const void* bottom, [[maybe_unused]] size_t bytes) {
#if TEMPER_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(nullptr, bottom, bytes);
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

bool in_stack_guard(const Fiber* fiber, const void* address) {
    const unsigned char* byte = static_cast<const unsigned char*>(address);
    return byte >= fiber->mapping && byte < fiber->mapping + guard_bytes;
}

}  // namespace simulator
