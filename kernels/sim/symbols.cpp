// The source line of an instruction, for reports of faults: asks addr2line where there is one.
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <map>

#include "machine.h"

namespace simulator {

Site site_of_instruction(const void* instruction) {
    static thread_local std::string file;
    Dl_info information;
    if (instruction == nullptr || dladdr(instruction, &information) == 0 || information.dli_fname == nullptr) return {"", 0};
    // A path that a shell could read as more than a path is not passed on.
    for (const char* at = information.dli_fname; *at != 0; at++) {
        if (*at == '\'') return {"", 0};
    }
    const size_t offset = size_t(static_cast<const char*>(instruction) - static_cast<const char*>(information.dli_fbase));
    char command[4400];
    snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", information.dli_fname, offset);
    FILE* pipe = popen(command, "r");
    if (pipe == nullptr) return {"", 0};
    char line[4096] = "";
    const bool read = fgets(line, sizeof line, pipe) != nullptr;
    pclose(pipe);
    if (!read) return {"", 0};
    file = line;
    const size_t colon = file.rfind(':');
    if (colon == std::string::npos) return {"", 0};
    const int number = atoi(file.c_str() + colon + 1);
    if (number == 0) return {"", 0};
    file.resize(colon);
    return {file.c_str(), number};
}

}  // namespace simulator
