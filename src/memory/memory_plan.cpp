#include "memory/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>

namespace deepscale {

std::string_view name_of(MemoryPlace place) {
  switch (place) {
    case MemoryPlace::kDevice:
      return "device";
    case MemoryPlace::kHostPinned:
      return "pinned";
    case MemoryPlace::kHostPageable:
      return "pageable";
    case MemoryPlace::kShared:
      return "shared";
    default:
      return "file";
  }
}

std::string_view name_of(PlannedState state) {
  switch (state) {
    case PlannedState::kParameters:
      return "parameters";
    case PlannedState::kGradients:
      return "gradients";
    case PlannedState::kMaster:
      return "master weights";
    case PlannedState::kOptimizer:
      return "optimizer states";
    case PlannedState::kGather:
      return "gather buffers";
    case PlannedState::kReduce:
      return "reduce buckets";
    case PlannedState::kResident:
      return "residents";
    case PlannedState::kParamBuffers:
      return "file buffers, parameters";
    case PlannedState::kOptimizerBuffers:
      return "file buffers, optimizer";
    default:
      return "other";
  }
}

void MemoryPlan::add(PlannedState state, MemoryPlace place, int64_t bytes, const std::string& remark) {
  if (bytes == 0) return;
  const auto found = std::find_if(rows.begin(), rows.end(),
                                  [&](const PlanRow& row) { return row.state == state && row.place == place; });
  if (found == rows.end()) {
    const auto before = std::find_if(rows.begin(), rows.end(), [&](const PlanRow& row) {
      return std::pair(row.state, row.place) > std::pair(state, place);
    });
    rows.insert(before, {state, place, bytes, remark});
    return;
  }
  found->bytes += bytes;
  if (remark.empty() || found->remark.find(remark) != std::string::npos) return;
  found->remark += (found->remark.empty() ? "" : "; ") + remark;
}

int64_t MemoryPlan::bytes(MemoryPlace place) const {
  int64_t sum = 0;
  for (const PlanRow& row : rows) sum += row.place == place ? row.bytes : 0;
  return sum;
}

int64_t MemoryPlan::bytes(PlannedState state) const {
  int64_t sum = 0;
  for (const PlanRow& row : rows) sum += row.state == state ? row.bytes : 0;
  return sum;
}

int64_t MemoryPlan::bytes(PlannedState state, MemoryPlace place) const {
  int64_t sum = 0;
  for (const PlanRow& row : rows) sum += row.state == state && row.place == place ? row.bytes : 0;
  return sum;
}

int64_t MemoryPlan::rank_memory_bytes() const {
  return bytes(MemoryPlace::kHostPinned) + bytes(MemoryPlace::kHostPageable) + bytes(MemoryPlace::kShared);
}

std::string readable_bytes(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= int64_t{1} << 30) return fmt::format("{:.2f} GiB", value / (1 << 30));
  if (bytes >= 1 << 20) return fmt::format("{:.1f} MiB", value / (1 << 20));
  return fmt::format("{:.1f} KiB", value / 1024);
}

}  // namespace deepscale
