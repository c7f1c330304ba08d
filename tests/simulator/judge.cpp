// Runs every case: right under several schedules, then wrong; and the tables. Prints what failed; exit status 1 if any did.
#include <atomic>
#include <cstdio>
#include <cstring>
#include <thread>

#include "harness.h"

volatile int guilty_line;

std::vector<Case>& cases() {
    static std::vector<Case> list;
    return list;
}

int check_tables();
int check_launches();
int check_counts();
int check_repeats();

namespace {

int failures;

void complain(const Case& test, const char* what, const std::string& detail) {
    printf("FAIL %s (fault %d): %s\n    %s\n", test.name, test.fault, what, detail.c_str());
    failures++;
}

// "a|b" is either.
bool contains(const std::string& report, const std::string& word) {
    const size_t bar = word.find('|');
    if (report.find(word.substr(0, bar)) != std::string::npos) return true;
    return bar != std::string::npos && contains(report, word.substr(bar + 1));
}

void check_right(const Case& test) {
    std::vector<float> first;
    for (uint64_t seed = 0; seed < 4; seed++) {
        std::vector<float> numbers;
        const std::string report = test.run(0, seed, numbers);
        if (!report.empty()) return complain(test, "the correct kernel is reported", report);
        if (!test.right(numbers)) return complain(test, "the correct kernel gives wrong numbers", "");
        if (seed == 0) first = numbers;
        if (memcmp(first.data(), numbers.data(), numbers.size() * sizeof(float)) != 0) {
            return complain(test, "the bits depend on the schedule", "seed " + std::to_string(seed));
        }
    }
}

// What is wrong with the report of a planted bug; empty when nothing is.
std::string judge_wrong(const Case& test, uint64_t seed) {
    std::vector<float> numbers;
    guilty_line = 0;
    const std::string report = test.run(test.fault, seed, numbers);
    if (test.words.empty()) {
        if (!report.empty()) return "wrong numbers were expected, not a report: " + report;
        return test.right(numbers) ? "the bug changes nothing" : "";
    }
    if (report.empty()) return "the bug is not reported";
    for (const char* word : test.words) {
        if (!contains(report, word)) return std::string("\"") + word + "\" is missing in: " + report;
    }
    if (test.names_line && !contains(report, ":" + std::to_string(guilty_line))) {
        return "the report does not name line " + std::to_string(guilty_line) + ": " + report;
    }
    return "";
}

void check_wrong(const Case& test) {
    if (test.only_watched && !watched) return;
    std::string complaint;
    for (uint64_t seed = 0; seed < 3; seed++) {
        const std::string found = judge_wrong(test, seed);
        if (!found.empty()) complaint = "seed " + std::to_string(seed) + ": " + found;
    }
    if (!complaint.empty()) complain(test, "wrong kernel", complaint);
}

// Launches of several OS threads do not meet.
int check_threads() {
    std::atomic<int> failures = 0;
    std::vector<std::thread> workers;
    for (int worker = 0; worker < 4; worker++) {
        workers.emplace_back([&, worker] {
            for (uint64_t seed = 0; seed < 20; seed++) {
                Buffer<float> in(64), out(64);
                for (int i = 0; i < 64; i++) in[i] = float(i + worker);
                const temper_launch shape = {{1, 1, 1}, {1, 1, 1}, 64, 2048, seed};
                // Every fourth launch fails, by a fault or by a report.
                const int fault = seed % 4 != 3 ? 0 : worker % 2 ? 3 : 4;
                const std::string report = launch("mirror", shape, out.data, (const float*)in.data, fault);
                if (report.empty() != (fault == 0)) failures++;
                for (int i = 0; i < 64 && fault == 0; i++) failures += out[i] != float(63 - i + worker);
            }
        });
    }
    for (std::thread& worker : workers) worker.join();
    if (failures != 0) printf("FAIL launches from several threads: %d\n", failures.load());
    return failures;
}

}  // namespace

int main() {
    for (const Case& test : cases()) {
        check_right(test);
        check_wrong(test);
    }
    failures += check_tables();
    failures += check_launches();
    failures += check_counts();
    failures += check_threads();
    failures += check_repeats();
    printf("%zu planted bugs%s, %d failures\n", cases().size(), watched ? ", watched" : "", failures);
    return failures != 0;
}
