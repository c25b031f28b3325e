// Communicator: a value handle on a group of ranks, over tensors. What stands behind it:
//   self     a complete world of one rank: every operation is a copy or nothing
//   host     ranks of one machine over shared memory: CPU tensors only
//   torch    any c10d process group the user has; with a host communicator beside it, CPU tensors take that one
//
// Calls on one communicator are made in the same order by all of its ranks; waits may come in any order.
// Every operation carries (sequence number, kind, dtype, element count, tag); a peer that is at another operation,
// dead, or missing for longer than the timeout ends the wait with a CommError that names both ranks' positions.
// Threads: one thread at a time per communicator.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepscale/reduce_op.h"

namespace deepscale {

class HostCommunicator;

/// An operation under way. Move-only. The destructor is a wait_released() that swallows errors: peers are never left
/// waiting, and bytes that they still read are never freed. So `op(...).wait();` on a temporary waits for both; keep
/// the Pending to go on while peers still read this rank's input.
class Pending {
 public:
  class Work {
   public:
    virtual ~Work() = default;
    virtual void wait() = 0;           ///< Outputs are complete (for CUDA: ordered on the current stream).
    virtual void wait_released() = 0;  ///< Inputs may be overwritten: no peer reads them any more.
  };

  Pending() = default;
  explicit Pending(std::unique_ptr<Work> work) : work_(std::move(work)) {}
  Pending(Pending&&) noexcept = default;
  Pending& operator=(Pending&& other) noexcept;
  ~Pending();

  /// Returns when outputs are complete. Throws CommError. A second call does nothing.
  /// (CUDA: outputs are ordered on the current stream; later failures are the backend's to report.)
  void wait();
  /// wait(), then returns when this rank's inputs may be overwritten too.
  void wait_released();
  [[nodiscard]] bool empty() const { return work_ == nullptr; }

 private:
  std::unique_ptr<Work> work_;
  bool waited_ = false;
};

class Communicator {
 public:
  class Impl;  // implemented by self_communicator.cpp, host_tensor_communicator.cpp, torch_communicator.cpp

  Communicator();  ///< self()
  explicit Communicator(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

  /// A world of one.
  static Communicator self();
  /// CPU tensors over shared memory.
  static Communicator host(std::shared_ptr<HostCommunicator> host);

  [[nodiscard]] int rank() const;
  [[nodiscard]] int size() const;
  [[nodiscard]] bool is_self() const { return size() == 1; }
  /// True when CPU tensors of this group travel through shared memory.
  [[nodiscard]] bool shares_memory() const;
  [[nodiscard]] std::string description() const;  ///< "host, 4 ranks", "nccl, 8 ranks", ...

  /// In place, all ranks the same dtype and element count.
  [[nodiscard]] Pending all_reduce(const at::Tensor& tensor, ReduceOp op, std::string_view tag = {}) const;
  /// input: size()*output.numel() elements; rank r receives the reduction of slice r. output may be slice rank() of
  /// input.
  [[nodiscard]] Pending reduce_scatter(const at::Tensor& input, const at::Tensor& output, ReduceOp op,
                                       std::string_view tag = {}) const;
  /// output: size()*input.numel() elements; input may be slice rank() of output.
  [[nodiscard]] Pending all_gather(const at::Tensor& input, const at::Tensor& output, std::string_view tag = {}) const;
  [[nodiscard]] Pending broadcast(const at::Tensor& tensor, int root, std::string_view tag = {}) const;
  /// Equal splits along the flat tensor; input and output hold the same number of elements and do not overlap.
  [[nodiscard]] Pending all_to_all(const at::Tensor& input, const at::Tensor& output, std::string_view tag = {}) const;
  [[nodiscard]] Pending send(const at::Tensor& tensor, int peer, std::string_view tag = {}) const;
  [[nodiscard]] Pending recv(const at::Tensor& tensor, int peer, std::string_view tag = {}) const;
  void barrier(std::string_view tag = {}) const;

  /// Zero-filled flat tensor of this rank whose bytes peers can read in place (host); an ordinary one otherwise.
  /// Not collective. 64-byte aligned. Freed when the last tensor on its storage dies.
  [[nodiscard]] at::Tensor allocate(int64_t numel, at::ScalarType dtype, at::Device device) const;
  /// One zero-filled flat tensor that all ranks of the group share (the same bytes, mapped into each), or nothing when
  /// ranks do not share memory or device is not the CPU. Collective: all ranks, same order, same arguments. A group of
  /// one gets an ordinary tensor. The caller synchronises writers and readers.
  [[nodiscard]] std::optional<at::Tensor> allocate_common(int64_t numel, at::ScalarType dtype, at::Device device) const;

  /// The communicator over `ranks` (ascending, ranks of this one, containing this rank). Collective over the whole of
  /// this communicator: every rank calls once with the subset it belongs to. Throws UnsupportedError behind a torch
  /// process group without shared memory: there the caller makes a group with torch and wraps it.
  [[nodiscard]] Communicator subgroup(const std::vector<int>& ranks) const;

  [[nodiscard]] std::chrono::milliseconds timeout() const;
  /// Bytes this rank has sent or read from peers since construction: the published volume formulas are checked with it.
  [[nodiscard]] int64_t bytes_moved() const;

 private:
  std::shared_ptr<Impl> impl_;
};

struct InitOptions {
  /// How long a peer may be late, at start and in every operation. Default: DEEPSPEED_TIMEOUT (minutes), else 10
  /// minutes.
  std::optional<std::chrono::milliseconds> timeout;
  bool use_host = true;  ///< shared memory for CPU tensors when all ranks are on one machine
};

/// The ranks of this run, found by what a launcher (deepspeed, torchrun, mpirun, srun) put into the environment; a
/// world of one without a launcher. Collective over the run's ranks. Throws ConfigError, CommError, IoError.
Communicator world_from_environment(const InitOptions& options = {});

}  // namespace deepscale
