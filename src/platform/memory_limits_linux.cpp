#include "platform/cgroups.h"
#include "platform/memory_limits.h"

namespace deepscale {

std::vector<MemoryLimit> memory_limits() {
  return cgroup_memory_limits(read_text_file);
}

}  // namespace deepscale
