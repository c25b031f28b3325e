// A few numbers of the host through a communicator that may serve another device only (NCCL serves GPUs).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "deepscale/communicator.h"

namespace deepscale {

/// Element by element over all ranks. `device`: one that the communicator serves. Collective; waits for the result.
std::vector<int64_t> all_reduce_values(const Communicator& group, at::Device device, std::vector<int64_t> values,
                                       ReduceOp op, std::string_view tag);
/// The values of rank `root` on every rank, which all pass as many. Collective; waits for the result.
std::vector<int64_t> broadcast_values(const Communicator& group, at::Device device, std::vector<int64_t> values,
                                      int root, std::string_view tag);

}  // namespace deepscale
