#include "zero/param_scheduler.h"

#include <algorithm>

namespace deepscale {

ParamScheduler::ParamScheduler(std::vector<int64_t> numels, Options options)
    : numels_(std::move(numels)), options_(options) {}

bool ParamScheduler::advance_to(int unit) {
  const auto found = std::find(trace_.begin() + static_cast<std::ptrdiff_t>(cursor_), trace_.end(), unit);
  if (found == trace_.end()) return false;
  cursor_ = static_cast<size_t>(found - trace_.begin()) + 1;
  return true;
}

std::vector<int> ParamScheduler::on_use(int unit, int64_t live_numel, const std::function<bool(int)>& is_live) {
  if (uses_++ == 0) first_ = unit;
  if (!complete_) {
    if (recording_) trace_.push_back(unit);
    return {};
  }
  if (!advance_to(unit)) {
    forget();
    recording_ = false;
    return {};
  }
  std::vector<int> ahead;
  int64_t budget = options_.prefetch_numel;
  int found = 0;
  const size_t end = options_.cyclic ? cursor_ + trace_.size() : trace_.size();
  for (size_t i = cursor_; i < end && (budget > 0 || found < options_.min_ahead); ++i) {
    const int next = trace_[i % trace_.size()];
    if (next == unit || numels_[next] == 0 || std::find(ahead.begin(), ahead.end(), next) != ahead.end()) continue;
    const bool unlimited = found++ < options_.min_ahead;
    budget -= numels_[next];
    if (is_live(next)) continue;
    if (live_numel + numels_[next] > options_.max_live_numel && !unlimited) break;
    ahead.push_back(next);
    live_numel += numels_[next];
  }
  return ahead;
}

bool ParamScheduler::keep_after(int unit, int64_t live_numel) const {
  if (!complete_ || live_numel > options_.max_live_numel) return false;
  int64_t distance = 0;
  for (size_t i = cursor_; i < trace_.size(); ++i) {
    if (trace_[i] == unit) return distance + numels_[unit] <= options_.max_reuse_distance_numel;
    distance += numels_[trace_[i]];
    if (distance > options_.max_reuse_distance_numel) return false;
  }
  return false;
}

void ParamScheduler::end_iteration() {
  complete_ = recording_ && !trace_.empty();
  recording_ = true;
  cursor_ = 0;
  uses_ = 0;
}

void ParamScheduler::forget() {
  trace_.clear();
  cursor_ = 0;
  complete_ = false;
  recording_ = true;
}

}  // namespace deepscale
