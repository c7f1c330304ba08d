// What a failed launch says: the message, and the words for threads, lanes, places and barriers in it.
//
// Failing leaves the stacks of all threads behind, so nothing on them may own memory: words are built in Text.
#include <cstdio>

#include "hopper.h"

namespace simulator {

void Text::add(const char* format, ...) {
    va_list values;
    va_start(values, format);
    const size_t length = strlen(characters);
    vsnprintf(characters + length, sizeof characters - length, format, values);
    va_end(values);
}

void Machine::note_failure(const Thread* thread, Site site, const char* format, va_list values) {
    char text[1024];
    vsnprintf(text, sizeof text, format, values);
    message = "kernel ";
    message += kernel->name;
    if (site.line != 0) message.append(" at ").append(describe_site(site).characters);
    if (thread != nullptr) message.append(", ").append(describe_thread(*thread).characters);
    message.append(": ").append(text);
    failed = true;
}

void Machine::fail(const Thread* thread, Site site, const char* format, ...) {
    va_list values;
    va_start(values, format);
    note_failure(thread, site, format, values);
    va_end(values);
    leave();
}

void Machine::fail_after(const Thread* thread, Site site, const char* format, ...) {
    va_list values;
    va_start(values, format);
    note_failure(thread, site, format, values);
    va_end(values);
}

void Machine::leave() {
    static thread_local Context abandoned;
    switch_context(abandoned, main, true);
    __builtin_unreachable();
}

namespace {

Text describe_state(const Thread& thread) {
    Text text;
    if (thread.state == State::exited) {
        text.add("exited");
        return text;
    }
    text.add("wait at %s", thread.wait.what);
    if (thread.wait.detail >= 0) text.add(" %lld", (long long)thread.wait.detail);
    if (thread.wait_mbarrier != nullptr) text.add("%s", describe_mbarrier(*thread.wait_mbarrier).characters);
    if (thread.wait.site.line != 0) text.add(" (%s)", describe_site(thread.wait.site).characters);
    return text;
}

constexpr size_t longest_report = 3000;

}  // namespace

// Neighbouring threads that wait for the same share a line.
void Machine::report_deadlock() {
    message = "kernel ";
    message.append(kernel->name).append(": deadlock: no thread can continue");
    for (const Block& block : blocks) {
        uint32_t start = 0;
        Text state = describe_state(block.threads[0]);
        for (uint32_t i = 1; i <= block.thread_count && message.size() < longest_report; i++) {
            Text next;
            if (i < block.thread_count) next = describe_state(block.threads[i]);
            if (i < block.thread_count && strcmp(next.characters, state.characters) == 0) continue;
            Text line;
            line.add("\n  block (%u,%u,%u) threads %u-%u ", block.index.x, block.index.y, block.index.z, start, i - 1);
            message.append(line.characters).append(state.characters);
            state = next;
            start = i;
        }
    }
    if (message.size() >= longest_report) message.append("\n  ...");
    failed = true;
    leave();
}

Text describe_site(Site site) {
    const char* name = site.file;
    for (const char* at = site.file; *at != 0; at++) {
        if (at[0] == '/' && at[1] != 0) name = at + 1;
    }
    Text text;
    text.add("%s:%d", name, site.line);
    return text;
}

Text describe_thread(const Thread& thread) {
    Text text;
    const uint3 block = thread.block->index;
    text.add("block (%u,%u,%u), thread %u (warp %u, lane %u)", block.x, block.y, block.z, thread.index, thread.warp->index,
             thread.lane);
    return text;
}

Text describe_lanes(uint32_t mask) {
    Text text;
    for (uint32_t lane = 0; lane < 32; lane++) {
        if (!(mask >> lane & 1)) continue;
        uint32_t end = lane;
        while (end + 1 < 32 && (mask >> (end + 1) & 1)) end++;
        text.add(end > lane ? "%s%u-%u" : "%s%u", text.characters[0] != 0 ? "," : "", lane, end);
        lane = end;
    }
    return text;
}

Text describe_mbarrier(const Mbarrier& barrier) {
    Text text;
    text.add(" of the mbarrier at shared offset %td, whose phase %llu lacks %u of %u arrivals and %lld bytes",
             reinterpret_cast<const unsigned char*>(barrier.address) - barrier.block->shared, (unsigned long long)barrier.phase,
             barrier.pending, barrier.arrivals, (long long)barrier.bytes);
    return text;
}

}  // namespace simulator
