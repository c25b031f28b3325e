// Decides what to gather ahead and what to keep, from the order in which units were used; moves nothing.
//
// The first complete iteration records the order of use (a trace of unit ids). Later iterations follow it with a
// cursor: on_use() answers which of the next units to prefetch, keep_after() whether a unit's next use is near enough
// to keep it. A use that is not the expected one moves the cursor to the next place where the trace fits, or, when
// there is none, forgets the trace: the next iteration, from its beginning, is recorded again. A changed order costs
// prefetches, never correctness.
//
// [Note: iterations that nobody announces] Passes that only run forward have no step that ends them. Their order is
// taken for a cycle: the trace is the shortest one that, repeated, gives all uses so far. It is known as soon as a
// first unit comes again, and revised when the guess was wrong because a unit is used twice in a pass (a tied head:
// 0 1 2 0, 0 1 2 0, ...), until a whole pass has followed it.
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
    int min_ahead = 0;      ///< so many of the next units are prefetched whatever the limits say
    bool cyclic = false;    ///< after the last unit of an iteration comes the first one of the next
    bool announced = true;  ///< end_iteration() says where one ends; else [Note: iterations that nobody announces]
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
  /// announced: an iteration (forward and backward) ended, the recorded order is complete. Otherwise does nothing.
  void end_iteration();
  void forget();
  /// Not announced: whether a use of `unit` would be the first of another iteration, as far as is known.
  [[nodiscard]] bool begins_with(int unit) const;

 private:
  bool follow(int unit);
  [[nodiscard]] std::vector<int>::const_iterator next_use(int unit) const;
  bool advance_to(int unit);
  void learn_cycle(int unit);

  std::vector<int64_t> numels_;
  Options options_;
  std::vector<int> trace_;
  size_t cursor_ = 0;  ///< position after the last matched use
  bool complete_ = false;
  bool recording_ = true;  ///< false: from the middle of an iteration to its end

  // Not announced: all uses while the trace is a guess, and for each beginning of them the longest proper beginning
  // that is also its end (Knuth, Morris and Pratt's table, which holds the shortest period).
  std::vector<int> history_;
  std::vector<size_t> borders_;
  bool certain_ = false;
};

}  // namespace deepscale
