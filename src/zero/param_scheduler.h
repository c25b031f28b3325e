// Decides what to gather ahead and what to keep, from the order in which units were used; moves nothing.
//
// The first complete iteration records the order of use (a trace of unit ids). Later iterations follow it with a
// cursor: on_use() answers which of the next units to prefetch, keep_after() whether a unit's next use is near enough
// to keep it. A use that is not the expected one moves the cursor to the next place where the trace fits, or, when
// there is none, forgets the trace: the next iteration, from its beginning, is recorded again. A changed order costs
// prefetches, never correctness.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

namespace deepscale {

class ParamScheduler {
 public:
  struct Options {
    int64_t prefetch_numel = 50'000'000;
    int64_t max_live_numel = 1'000'000'000;
    int64_t max_reuse_distance_numel = 1'000'000'000;
    int min_ahead = 0;    ///< so many of the next units are prefetched whatever the limits say
    bool cyclic = false;  ///< after the last unit of an iteration comes the first one of the next
  };

  /// numels[u]: elements that gathering unit u costs (0: nothing to move).
  ParamScheduler(std::vector<int64_t> numels, Options options);

  /// Unit `unit` is about to be used; `live_numel` elements are gathered already, those of the units of which is_live
  /// says so. Returns the units to prefetch, in order.
  std::vector<int> on_use(int unit, int64_t live_numel, const std::function<bool(int)>& is_live);
  /// Whether to keep `unit` gathered after the use that on_use() announced last.
  [[nodiscard]] bool keep_after(int unit, int64_t live_numel) const;
  /// From now on gathering `unit` costs so many elements.
  void set_numel(int unit, int64_t numel) { numels_[unit] = numel; }
  /// An iteration (forward and backward) ended: the recorded order is complete.
  void end_iteration();
  void forget();
  /// Whether this iteration began with `unit` and has used others or the same since. Where nobody says that an
  /// iteration ended, this is as good a sign as any: the order is a cycle, and may be cut anywhere.
  [[nodiscard]] bool began_with(int unit) const { return uses_ > 1 && first_ == unit; }

 private:
  bool advance_to(int unit);

  std::vector<int64_t> numels_;
  Options options_;
  std::vector<int> trace_;
  size_t cursor_ = 0;  ///< position after the last matched use
  bool complete_ = false;
  bool recording_ = true;  ///< false: from the middle of an iteration to its end
  int first_ = -1;         ///< of this iteration
  int64_t uses_ = 0;       ///< in this iteration
};

}  // namespace deepscale
