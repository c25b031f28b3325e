#include "platform/memory_limits.h"

#include <algorithm>

#include "platform/process_limits.h"

namespace deepscale {

MemoryFacts within_limits(MemoryFacts machine, std::span<const MemoryLimit> limits) {
  for (const MemoryLimit& limit : limits) {
    if (limit.limit_bytes <= 0) continue;
    const int64_t left = std::max<int64_t>(0, limit.limit_bytes - std::max<int64_t>(0, limit.used_bytes));
    machine.available_bytes = std::min(machine.available_bytes, left);
    if (limit.limit_bytes >= machine.total_bytes) continue;
    machine.total_bytes = limit.limit_bytes;
    machine.limited_by = limit.source;
  }
  return machine;
}

MemoryFacts process_memory_facts() {
  std::vector<MemoryLimit> limits;
  for (const ProcessLimit& limit : process_limits())
    limits.push_back({limit.limit_bytes, limit.used_bytes, limit.name});
  return within_limits(memory_facts(), limits);
}

}  // namespace deepscale
