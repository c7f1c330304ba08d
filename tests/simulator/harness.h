// What the planted bugs share: how a case is declared, launched and judged.
//
// A case is a kernel that is right with fault 0 and wrong with any other. Right must pass with the expected numbers, so
// that no check is vacuous; wrong must be reported in the expected words, at the expected line.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "sim/interface.h"

// The line that a report has to name: a kernel sets it on that line itself, MARK(); before the statement.
extern volatile int guilty_line;
#define MARK() (guilty_line = __LINE__)
#define MARK_IF(condition)                   \
    do {                                     \
        if (condition) guilty_line = __LINE__; \
    } while (false)

// Whether the kernels were compiled with the calls that the watch answers.
#if defined(TEMPER_WATCHED)
constexpr bool watched = true;
#else
constexpr bool watched = false;
#endif

struct Case {
    const char* name;
    int fault;
    // Runs the kernel with a fault under a seed; returns the report (empty when there is none) and fills the numbers.
    std::function<std::string(int fault, uint64_t seed, std::vector<float>& numbers)> run;
    // What the numbers have to be without a fault.
    std::function<bool(const std::vector<float>& numbers)> right;
    // Words that the report must contain, all of them; "a|b" is either. Without any, wrong numbers are the report: a bug that the machine
    // executes faithfully, as a wrong swizzle.
    std::vector<const char*> words;
    // Invisible without the watch.
    bool only_watched = false;
    // Whether the report names the marked line.
    bool names_line = true;
};

std::vector<Case>& cases();

struct AddCase {
    explicit AddCase(Case added) { cases().push_back(added); }
};

// An allocation of the simulator, given back at the end of its scope.
template <typename T>
struct Buffer {
    T* data;
    size_t count;
    explicit Buffer(size_t count) : data(static_cast<T*>(temper_sim_allocate(count * sizeof(T)))), count(count) {}
    ~Buffer() { temper_sim_release(data, count * sizeof(T)); }
    Buffer(const Buffer&) = delete;
    T& operator[](size_t i) { return data[i]; }
};

// Where launches are counted, if they are.
extern temper_counters* counted;

template <typename... Arguments>
std::string launch(const char* kernel, temper_launch shape, Arguments... arguments) {
    void* pointers[] = {static_cast<void*>(&arguments)..., nullptr};
    const uint32_t count = sizeof...(arguments);
    const char* report = counted == nullptr ? temper_sim_launch(kernel, &shape, pointers, count)
                                            : temper_sim_launch_counted(kernel, &shape, pointers, count, counted);
    return report == nullptr ? "" : report;
}

// A repeatable source of small numbers that bf16 holds exactly.
struct Numbers {
    uint64_t state;
    float next() {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        return float(int(state >> 58) - 32) / 16.0f;
    }
};

inline uint16_t bits_of(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return uint16_t(bits >> 16);
}
