#include "zero/param_scheduler.h"

#include <algorithm>

namespace deepscale {

ParamScheduler::ParamScheduler(std::vector<int64_t> numels, Options options)
    : numels_(std::move(numels)), options_(options) {}

std::vector<int>::const_iterator ParamScheduler::next_use(int unit) const {
  return std::find(trace_.begin() + static_cast<std::ptrdiff_t>(cursor_), trace_.end(), unit);
}

bool ParamScheduler::advance_to(int unit) {
  const auto found = next_use(unit);
  if (found == trace_.end()) return false;
  cursor_ = static_cast<size_t>(found - trace_.begin()) + 1;
  return true;
}

bool ParamScheduler::begins_with(int unit) const {
  if (!complete_) return !history_.empty() && history_.front() == unit;
  return trace_.front() == unit && next_use(unit) == trace_.end();
}

/// A use goes into the history; the trace becomes the shortest cycle of it, once there is one.
void ParamScheduler::learn_cycle(int unit) {
  constexpr size_t kLongest = 1 << 16;  // of an order that never repeats
  if (history_.size() == kLongest) forget();
  size_t border = history_.empty() ? 0 : borders_.back();
  while (border > 0 && history_[border] != unit) border = borders_[border - 1];
  if (!history_.empty() && history_[border] == unit) ++border;
  history_.push_back(unit);
  borders_.push_back(border);
  complete_ = border > 0;
  if (!complete_) return;
  const size_t period = history_.size() - border;
  if (trace_.size() != period) {
    trace_.assign(history_.begin(), history_.begin() + static_cast<std::ptrdiff_t>(period));
  }
  cursor_ = (border - 1) % period + 1;
  certain_ = border > period;  // a pass, the same again, and the beginning of a third
  if (!certain_) return;
  history_.clear();
  borders_.clear();
}

/// Notes a use; whether it is known what comes next.
bool ParamScheduler::follow(int unit) {
  if (!options_.announced && !certain_) {
    learn_cycle(unit);
    return complete_;
  }
  if (!complete_) {
    if (recording_) trace_.push_back(unit);
    return false;
  }
  // Behind the end, or from within a pass that was cut off.
  if (!options_.announced && (cursor_ == trace_.size() || begins_with(unit))) cursor_ = 0;
  if (advance_to(unit)) return true;
  forget();
  if (options_.announced) {
    recording_ = false;
  } else {
    learn_cycle(unit);
  }
  return false;
}

std::vector<int> ParamScheduler::on_use(int unit, int64_t live_numel, const std::function<bool(int)>& is_live) {
  if (!follow(unit)) return {};
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
  if (!options_.announced) return;
  complete_ = recording_ && !trace_.empty();
  recording_ = true;
  cursor_ = 0;
}

void ParamScheduler::forget() {
  trace_.clear();
  cursor_ = 0;
  complete_ = false;
  recording_ = true;
  certain_ = false;
  history_.clear();
  borders_.clear();
}

}  // namespace deepscale
