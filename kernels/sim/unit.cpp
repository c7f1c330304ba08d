// Compiles one kernel file inside a namespace of its own, so that functions of the same name in two kernel files do not
// merge (under nvcc every file has its own device code; on the host, templates of equal name would be one).
//
//   c++ -std=gnu++20 -DTEMPER_SIMULATOR -DTEMPER_UNIT=unit_norm -DTEMPER_UNIT_FILE='"../norm.cu"' -c kernels/sim/unit.cpp
//
// Without TEMPER_UNIT the file is empty.
#ifdef TEMPER_UNIT
#include "../ptx.cuh"
#include "../common.cuh"

namespace TEMPER_UNIT {
#include TEMPER_UNIT_FILE
}
#endif
