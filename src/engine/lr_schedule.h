// The five learning-rate schedules of the configuration. Pure arithmetic over one number, the position i: -1 at
// construction, one more after each applied optimizer step. Torch-free.
//
// WarmupLR        lr = min + (max - min) * g; g = ln(i+1)/ln(n) or i/n while i < n = max(2, warmup_num_steps), then 1
// WarmupDecayLR   the same; from i = n on g = max(0, (T - i) / max(1, T - n))
// WarmupCosineLR  lr = base * ratio; ratio rises from warmup_min_ratio to 1 by the same g, then falls by a half cosine
//                 to cos_min_ratio at T (Loshchilov and Hutter 2017, "SGDR", arXiv 1608.03983)
// LRRangeTest     lr = min * (1 + rate * k), k = (i+1)/step_size or its floor (Smith 2017, arXiv 1506.01186)
// OneCycle        lr up and down once and momentum against it, then both decay ("1cycle", Smith 2018, arXiv 1803.09820)
// Threads: one at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace deepscale {

/// What a schedule needs to know of a parameter group.
struct ScheduledGroup {
  double lr = 1e-3;  ///< the optimizer's own rate
};

/// What a schedule wants of a parameter group. momentum: beta1; beta2 is then kCycleBeta2.
struct GroupRate {
  double lr = 0;
  std::optional<double> momentum;
};

class LrSchedule {
 public:
  static constexpr double kCycleBeta2 = 0.99;

  virtual ~LrSchedule() = default;

  /// type: scheduler.type. params_json: scheduler.params. has_betas: the optimizer's momentum may be cycled.
  /// Settings without effect are added to `warnings`. Throws ConfigError for an unknown type, an unknown, missing or
  /// impossible parameter.
  static std::unique_ptr<LrSchedule> make(const std::string& type, const std::string& params_json,
                                          const std::vector<ScheduledGroup>& groups, bool has_betas,
                                          std::vector<std::string>& warnings);

  /// One optimizer step was applied.
  void advance() { ++position_; }
  [[nodiscard]] int64_t last_batch_iteration() const { return position_; }
  void set_last_batch_iteration(int64_t position) { position_ = position; }

  /// Values that hold before the first step; nothing for a schedule that was told to start further on.
  [[nodiscard]] virtual std::optional<std::vector<GroupRate>> initial() const;
  /// Values at the current position, one per group.
  [[nodiscard]] virtual std::vector<GroupRate> rates() const = 0;

 protected:
  int64_t position_ = -1;
};

}  // namespace deepscale
