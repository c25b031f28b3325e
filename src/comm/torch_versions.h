// What differs between the versions of torch that DeepScale is compiled for (2.11 to 2.15), in one place. A name that
// changed is chosen by what the headers offer; where that is no question to ask, by version number.
//   2.13  autograd nodes are held by intrusive_ptr instead of shared_ptr
//   2.15  c10d's functions over one tensor lose their names in *_base and get names in *_single
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/headeronly/version.h>

#include <memory>
#include <vector>

namespace torch::autograd {
struct Node;
}  // namespace torch::autograd

namespace deepscale {

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR < 13
using AutogradNode = std::shared_ptr<torch::autograd::Node>;
#else
using AutogradNode = c10::intrusive_ptr<torch::autograd::Node>;
#endif

// Group is c10d::ProcessGroup and Options its options of that collective; as parameters, so that calls of names that do
// not exist are not compiled, and so that this header does without c10d's.

template <typename Group, typename Options>
auto call_reduce_scatter(Group& group, at::Tensor& output, at::Tensor& input, const Options& options) {
  if constexpr (requires { group.reduce_scatter_single(output, input, options); }) {
    return group.reduce_scatter_single(output, input, options);
  } else {
    return group._reduce_scatter_base(output, input, options);
  }
}

template <typename Group, typename Options>
auto call_all_gather(Group& group, at::Tensor& output, at::Tensor& input, const Options& options) {
  if constexpr (requires { group.all_gather_single(output, input, options); }) {
    return group.all_gather_single(output, input, options);
  } else {
    return group._allgather_base(output, input, options);
  }
}

template <typename Group, typename Options>
auto call_all_to_all(Group& group, at::Tensor& output, at::Tensor& input, std::vector<int64_t>& splits,
                     const Options& options) {
  if constexpr (requires { group.all_to_all_single(output, input, splits, splits, options); }) {
    return group.all_to_all_single(output, input, splits, splits, options);
  } else {
    return group.alltoall_base(output, input, splits, splits, options);
  }
}

/// Whether the backend's options list the ranks of the group: split() reads them without looking.
template <typename Options>
bool lists_ranks(const Options& options, int size) {
  if constexpr (requires { options.global_ranks_in_group.size(); }) {
    return options.global_ranks_in_group.size() == static_cast<size_t>(size);
  } else {
    return true;
  }
}

}  // namespace deepscale
