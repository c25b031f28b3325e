#include "comm/host_values.h"

#include <ATen/Functions.h>

#include <algorithm>

namespace deepscale {
namespace {

template <typename Move>
std::vector<int64_t> through(at::Device device, const std::vector<int64_t>& values, const Move& move) {
  at::Tensor on_host = at::empty({static_cast<int64_t>(values.size())}, at::kLong);
  std::copy(values.begin(), values.end(), on_host.mutable_data_ptr<int64_t>());
  at::Tensor travelling = on_host.to(device);
  move(travelling).wait_released();
  on_host = travelling.cpu();
  const auto* first = on_host.const_data_ptr<int64_t>();
  return {first, first + values.size()};
}

}  // namespace

std::vector<int64_t> all_reduce_values(const Communicator& group, at::Device device, std::vector<int64_t> values,
                                       ReduceOp op, std::string_view tag) {
  if (group.is_self()) return values;
  return through(device, values, [&](const at::Tensor& tensor) { return group.all_reduce(tensor, op, tag); });
}

std::vector<int64_t> broadcast_values(const Communicator& group, at::Device device, std::vector<int64_t> values,
                                      int root, std::string_view tag) {
  if (group.is_self()) return values;
  return through(device, values, [&](const at::Tensor& tensor) { return group.broadcast(tensor, root, tag); });
}

}  // namespace deepscale
