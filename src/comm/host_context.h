// HostContext: what all groups of one rank share: the memory, the headers through which ranks wake each other, the wait
// loop that works for every group, and the failure that ends them all.
// Threads: any; `mutex()` guards the queues of all groups of this rank, and is held during work and released for sleep.
#pragma once

#include <chrono>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "comm/host_communicator.h"
#include "comm/host_control.h"

namespace deepscale {

/// What a wait is for.
enum class HostUntil : uint8_t {
  kOutputs,   ///< this rank's outputs are complete
  kReleased,  ///< and its inputs are free
};

class HostContext {
 public:
  HostContext(std::shared_ptr<HostMemory> memory, const HostOptions& options);

  [[nodiscard]] int rank() const { return memory_->rank(); }
  [[nodiscard]] const std::shared_ptr<HostMemory>& memory() const { return memory_; }
  [[nodiscard]] const HostOptions& options() const { return options_; }
  [[nodiscard]] HostRankHeader& header(int rank) const { return *headers_[static_cast<size_t>(rank)]; }
  [[nodiscard]] std::mutex& mutex() { return mutex_; }
  /// False in a child after fork(), which must leave everything alone.
  [[nodiscard]] bool owns_process() const;

  /// Wakes those of `ranks` that sleep. The caller has published what they may wait for, sequentially consistent.
  void ring(std::span<const int> ranks) const;

  /// Groups with queued operations; a group adds itself, and the wait loop drops it. Under the mutex.
  void activate(HostGroup& group);
  /// Before a group dies.
  void forget(HostGroup& group);

  /// Works for all groups until the operation has got so far. Throws CommError; then the context has failed.
  void wait(HostGroup& group, const HostOperation& operation, HostUntil until);
  /// Works without blocking. True when wait() would return at once.
  bool poll(HostGroup& group, const HostOperation& operation, HostUntil until);

  /// Records the error as this rank's failure and drops all queued operations: nobody touches their buffers any more.
  /// Under the mutex.
  void give_up(const std::exception& error);

  [[nodiscard]] bool failed() const;
  /// Throws the recorded cause when any rank has failed.
  void check_failed() const;
  /// Records the cause, unless one is recorded, and wakes everybody.
  void publish_failure(const std::string& cause) const;

 private:
  struct Idle;

  bool progress();
  void linger(std::unique_lock<std::mutex>& lock, Idle& idle);
  void sleep(std::unique_lock<std::mutex>& lock, HostGroup& group, const HostOperation& operation, HostUntil until,
             Idle& idle);
  void check_peers(HostGroup& group, const HostOperation& operation, HostUntil until, const Idle& idle);
  [[nodiscard]] bool has_exited(int rank) const;
  void abandon_all();

  const std::shared_ptr<HostMemory> memory_;
  const HostOptions options_;
  const int64_t pid_;
  std::vector<HostRankHeader*> headers_;  // by rank
  bool crowded_ = false;                  // more ranks than CPUs
  std::mutex mutex_;
  std::vector<HostGroup*> active_;  // guarded by mutex_
  int contention_ = 0;              // guarded by mutex_; recent waits in which somebody else wanted the core
};

}  // namespace deepscale
