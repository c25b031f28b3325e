// The operations of a communicator with their times, for the communications summary. While a log is enabled every
// operation is waited for as soon as it has begun: what overlaps otherwise is then measured alone, and takes longer in
// all. While it is not, a call costs one more virtual call.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "comm/communicator.h"

namespace deepscale {

/// Threads: any, at any time.
class OperationLog {
 public:
  struct Entry {
    const char* operation = "";  ///< torch.distributed's name, "reduce_scatter_tensor" for instance
    int64_t bytes =
        0;  ///< of one rank's piece: the tensor, all_gather's and all_to_all's input, reduce_scatter's output
    int ranks = 1;
    double milliseconds = 0.0;
  };

  void enable(bool enabled) { enabled_ = enabled; }
  [[nodiscard]] bool enabled() const { return enabled_.load(std::memory_order_relaxed); }
  void add(const Entry& entry);
  /// What was added since the last call, in its order.
  std::vector<Entry> take();

 private:
  std::atomic<bool> enabled_ = false;
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

/// `inner`, whose operations, and those of its subgroups, go into `log`; send and recv do not, which not all ranks
/// make.
Communicator recorded(Communicator inner, std::shared_ptr<OperationLog> log);

}  // namespace deepscale
