// What a Communicator's handle points at. communicator.cpp checks every argument (contiguous, dtype, sizes, rank
// ranges) before it calls in here, so implementations only move bytes.
#pragma once

#include <ATen/core/Tensor.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/communicator.h"

namespace deepscale {

class Communicator::Impl {
 public:
  virtual ~Impl() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  [[nodiscard]] virtual bool shares_memory() const = 0;
  [[nodiscard]] virtual std::string description() const = 0;
  [[nodiscard]] virtual std::chrono::milliseconds timeout() const = 0;
  [[nodiscard]] virtual int64_t bytes_moved() const = 0;

  virtual Pending all_reduce(const at::Tensor& tensor, ReduceOp op, std::string_view tag) = 0;
  virtual Pending reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op,
                                 std::string_view tag) = 0;
  virtual Pending all_gather(const at::Tensor& input, const at::Tensor& output, std::string_view tag) = 0;
  virtual Pending broadcast(const at::Tensor& tensor, int root, std::string_view tag) = 0;
  virtual Pending all_to_all(const at::Tensor& input, const at::Tensor& output, std::string_view tag) = 0;
  virtual Pending send(const at::Tensor& tensor, int peer, std::string_view tag) = 0;
  virtual Pending recv(const at::Tensor& tensor, int peer, std::string_view tag) = 0;
  virtual void barrier(std::string_view tag) = 0;

  virtual at::Tensor allocate(int64_t numel, at::ScalarType dtype, at::Device device) = 0;
  virtual std::optional<at::Tensor> allocate_common(int64_t numel, at::ScalarType dtype, at::Device device) = 0;
  virtual Communicator subgroup(const std::vector<int>& ranks) = 0;
};

/// Zero-filled flat tensor of memory that no other rank sees; a large one on the CPU stays outside malloc's heap.
at::Tensor allocate_private(int64_t numel, at::ScalarType dtype, at::Device device);

/// Copies bytes of equally sized contiguous tensors without telling autograd (no version bump, leaves allowed).
void copy_bytes(const at::Tensor& from, const at::Tensor& to);

}  // namespace deepscale
