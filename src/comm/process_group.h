// A c10d process group behind a light header: c10d's own headers take 20 s to parse and name their virtual functions
// differently from one torch version to the next, so only process_group.cpp (calls) and process_group_gloo.cpp
// (construction) include them.
// Arguments are checked by the caller. Every call returns at once; errors of the backend come as std::exception, either
// from the call or from wait(). Threads: one at a time per group, as c10d asks.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/reduce_op.h"

namespace c10d {
class ProcessGroup;
class Store;
}  // namespace c10d

namespace deepscale {

class ProcessGroup {
 public:
  class Work {
   public:
    virtual ~Work() = default;
    virtual void wait() = 0;
  };
  using WorkPtr = std::unique_ptr<Work>;
  using Handle = c10::intrusive_ptr<c10d::ProcessGroup>;

  /// `timeout` replaces the group's own for the operations started here.
  static std::unique_ptr<ProcessGroup> wrap(const Handle& group, std::optional<std::chrono::milliseconds> timeout);
  virtual ~ProcessGroup() = default;

  [[nodiscard]] virtual int rank() const = 0;
  [[nodiscard]] virtual int size() const = 0;
  [[nodiscard]] virtual std::chrono::milliseconds timeout() const = 0;
  /// Name of the backend that serves tensors on `device` ("gloo", "nccl", ...), or nothing.
  [[nodiscard]] virtual std::optional<std::string> backend(at::DeviceType device) const = 0;
  /// Device types with a backend, CPU first.
  [[nodiscard]] virtual std::vector<at::DeviceType> devices() const = 0;

  virtual WorkPtr all_reduce(const at::Tensor& tensor, ReduceOp op) = 0;
  virtual WorkPtr reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op) = 0;
  virtual WorkPtr all_gather(const at::Tensor& input, const at::Tensor& output) = 0;
  virtual WorkPtr broadcast(const at::Tensor& tensor, int root) = 0;
  virtual WorkPtr all_to_all(const at::Tensor& input, const at::Tensor& output) = 0;
  virtual WorkPtr send(const at::Tensor& tensor, int peer) = 0;
  virtual WorkPtr recv(const at::Tensor& tensor, int peer) = 0;
  virtual WorkPtr barrier() = 0;

  /// A note for the other ranks in the group's store; false when the group has no store or it does not answer.
  virtual bool publish(const std::string& key, const std::string& value) = 0;
  /// What another rank published, or nothing (never waits).
  virtual std::optional<std::string> look_up(const std::string& key) = 0;

  /// The group over `ranks`, made by the backend itself. Throws where the backend cannot split.
  virtual std::unique_ptr<ProcessGroup> split(const std::vector<int>& ranks) = 0;
};

}  // namespace deepscale
