#include "engine/lr_schedule.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <string_view>

#include "base/error.h"
#include "engine/param_reader.h"

namespace deepscale {
namespace {

/// The rise that three schedules share.
struct Warmup {
  int64_t steps = 2;
  bool logarithmic = true;

  static Warmup read(ParamReader& params, std::vector<std::string>& warnings) {
    Warmup warmup;
    const int64_t wanted = params.count("warmup_num_steps", 1000);
    DS_CHECK_AS(ConfigError, wanted >= 0, "scheduler.params.warmup_num_steps must be a positive integer, got {}",
                wanted);
    warmup.steps = std::max<int64_t>(2, wanted);
    const std::string type = params.text("warmup_type", "log");
    if (type != "log" && type != "linear") {
      warnings.push_back(
          fmt::format("scheduler.params.warmup_type \"{}\" is unknown: using \"log\" (known: log, linear)", type));
    }
    warmup.logarithmic = type != "linear";
    return warmup;
  }

  [[nodiscard]] double fraction(int64_t position) const {
    if (logarithmic) {
      const double inverse_log = 1.0 / std::log(static_cast<double>(steps));
      return inverse_log * std::log(static_cast<double>(position + 1));
    }
    return static_cast<double>(position) / static_cast<double>(steps);
  }
};

int64_t required_total(ParamReader& params, const Warmup& warmup, std::vector<std::string>& warnings) {
  params.require("total_num_steps");
  const int64_t total = params.count("total_num_steps", 0);
  if (total < warmup.steps) {
    warnings.push_back(fmt::format(
        "scheduler.params.total_num_steps {} is less than warmup_num_steps {}: the rate never reaches its maximum",
        total, warmup.steps));
  }
  return total;
}

std::vector<double> own_rates(const std::vector<ScheduledGroup>& groups) {
  std::vector<double> rates;
  for (const auto& group : groups) rates.push_back(group.lr);
  return rates;
}

std::vector<GroupRate> with_rates(const std::vector<double>& rates) {
  std::vector<GroupRate> made;
  for (const double lr : rates) made.push_back({lr, std::nullopt});
  return made;
}

class WarmupSchedule : public LrSchedule {
 public:
  WarmupSchedule(ParamReader& params, const std::vector<ScheduledGroup>& groups, bool decays,
                 std::vector<std::string>& warnings) {
    const size_t count = groups.size();
    min_ = params.per_group("warmup_min_lr", std::vector<double>(count, 0.0));
    max_ = params.per_group("warmup_max_lr", decays ? std::vector<double>(count, 0.001) : own_rates(groups));
    warmup_ = Warmup::read(params, warnings);
    if (!decays) return;
    total_ = required_total(params, warmup_, warnings);
  }

  std::vector<GroupRate> rates() const override {
    if (position_ < 0) return with_rates(min_);
    const double gamma = position_ < warmup_.steps ? warmup_.fraction(position_) : after_warmup();
    std::vector<double> rates;
    for (size_t g = 0; g < min_.size(); ++g) rates.push_back(min_[g] + (max_[g] - min_[g]) * gamma);
    return with_rates(rates);
  }

 private:
  [[nodiscard]] double after_warmup() const {
    if (!total_) return 1.0;
    const auto left = static_cast<double>(*total_ - position_);
    return std::max(0.0, left / std::max(1.0, static_cast<double>(*total_ - warmup_.steps)));
  }

  std::vector<double> min_, max_;
  Warmup warmup_;
  std::optional<int64_t> total_;
};

class CosineSchedule : public LrSchedule {
 public:
  CosineSchedule(ParamReader& params, const std::vector<ScheduledGroup>& groups, std::vector<std::string>& warnings)
      : base_(own_rates(groups)) {
    warmup_min_ratio_ = params.number("warmup_min_ratio", 0.0);
    cos_min_ratio_ = params.number("cos_min_ratio", 0.0001);
    warmup_ = Warmup::read(params, warnings);
    total_ = required_total(params, warmup_, warnings);
  }

  std::vector<GroupRate> rates() const override {
    std::vector<double> rates;
    for (const double lr : base_) rates.push_back(lr * ratio());
    return with_rates(rates);
  }

 private:
  [[nodiscard]] double ratio() const {
    if (position_ < 0) return 0.0;
    if (position_ < warmup_.steps) return warmup_min_ratio_ + (1.0 - warmup_min_ratio_) * warmup_.fraction(position_);
    const auto window = static_cast<double>(std::max<int64_t>(1, total_ - warmup_.steps));
    const double progress = std::min(1.0, static_cast<double>(position_ - warmup_.steps + 1) / window);
    const double cosine = (1.0 + std::cos(std::numbers::pi * progress)) / 2.0;
    return std::max(0.0, cos_min_ratio_ + (1.0 - cos_min_ratio_) * cosine);
  }

  std::vector<double> base_;
  Warmup warmup_;
  int64_t total_ = 0;
  double warmup_min_ratio_ = 0;
  double cos_min_ratio_ = 0;
};

class RangeTest : public LrSchedule {
 public:
  RangeTest(ParamReader& params, const std::vector<ScheduledGroup>& groups)
      : min_(params.per_group("lr_range_test_min_lr", std::vector<double>(groups.size(), 1e-3))),
        step_size_(params.count("lr_range_test_step_size", 2000)),
        step_rate_(params.number("lr_range_test_step_rate", 1.0)),
        staircase_(params.flag("lr_range_test_staircase", false)) {
    DS_CHECK_AS(ConfigError, step_size_ > 0,
                "scheduler.params.lr_range_test_step_size must be a positive integer, got {}", step_size_);
  }

  std::vector<GroupRate> rates() const override {
    const double steps = static_cast<double>(position_ + 1) / static_cast<double>(step_size_);
    const double factor = 1.0 + step_rate_ * (staircase_ ? std::floor(steps) : steps);
    std::vector<double> rates;
    for (const double lr : min_) rates.push_back(lr * factor);
    return with_rates(rates);
  }

 private:
  std::vector<double> min_;
  int64_t step_size_;
  double step_rate_;
  bool staircase_;
};

class OneCycle : public LrSchedule {
 public:
  OneCycle(ParamReader& params, const std::vector<ScheduledGroup>& groups, bool has_betas) {
    const size_t count = groups.size();
    params.require("cycle_min_lr");
    params.require("cycle_max_lr");
    min_lr_ = params.per_group("cycle_min_lr", std::vector<double>(count));
    max_lr_ = params.per_group("cycle_max_lr", std::vector<double>(count));
    first_ = params.number("cycle_first_step_size", 2000);
    second_ = params.number("cycle_second_step_size", first_);
    DS_CHECK_AS(ConfigError, first_ > 0, "scheduler.params.cycle_first_step_size must be positive, got {}", first_);
    DS_CHECK_AS(ConfigError, second_ >= 0, "scheduler.params.cycle_second_step_size must not be negative, got {}",
                second_);
    first_stairs_ = params.number("cycle_first_stair_count", 0);
    second_stairs_ = params.number("cycle_second_stair_count", first_stairs_);
    decay_step_ = params.number("decay_step_size", 0);
    decay_lr_rate_ = params.number("decay_lr_rate", 0);
    decay_mom_rate_ = params.number("decay_mom_rate", 0);
    cycles_momentum_ = params.flag("cycle_momentum", true) && has_betas;
    min_mom_ = params.per_group("cycle_min_mom", std::vector<double>(count, 0.8));
    max_mom_ = params.per_group("cycle_max_mom", std::vector<double>(count, 0.9));
  }

  std::optional<std::vector<GroupRate>> initial() const override {
    if (position_ != -1) return std::nullopt;
    return each([&](size_t g) { return min_lr_[g]; }, [&](size_t g) { return min_mom_[g]; });
  }

  std::vector<GroupRate> rates() const override {
    if (static_cast<double>(position_) < total()) {
      const double scale = cycle_scale();
      return each([&](size_t g) { return min_lr_[g] + (max_lr_[g] - min_lr_[g]) * scale; },
                  [&](size_t g) { return max_mom_[g] - (max_mom_[g] - min_mom_[g]) * scale; });
    }
    const double interval = decay_step_ == 0 ? 0.0 : (static_cast<double>(position_) - total() + 1.0) / decay_step_;
    const double lr_factor = 1.0 + decay_lr_rate_ * interval;
    const double mom_factor = 1.0 + decay_mom_rate_ * interval;
    return each([&](size_t g) { return min_lr_[g] / lr_factor; }, [&](size_t g) { return max_mom_[g] * mom_factor; });
  }

 private:
  [[nodiscard]] double total() const { return first_ + second_; }

  template <typename Lr, typename Momentum>
  std::vector<GroupRate> each(const Lr& lr, const Momentum& momentum) const {
    std::vector<GroupRate> made;
    for (size_t g = 0; g < min_lr_.size(); ++g) {
      made.push_back({lr(g), cycles_momentum_ ? std::optional<double>(momentum(g)) : std::nullopt});
    }
    return made;
  }

  /// 0 at the bottom of the cycle, 1 at its top.
  [[nodiscard]] double cycle_scale() const {
    const auto position = static_cast<double>(position_ + 1);
    const double fraction = position / total() - std::floor(position / total());
    const double rise = first_ / total();
    const bool rising = fraction <= rise;
    const double stairs = rising ? first_stairs_ : second_stairs_;
    if (stairs <= 0) return rising ? fraction / rise : (fraction - 1.0) / (rise - 1.0);
    // Stairs are counted from the whole number of steps: rounding of `fraction` must not cost one.
    const double offset = std::fmod(position, total());
    if (offset <= first_) return std::floor(offset * stairs / first_) / stairs;
    return std::floor((total() - offset) * stairs / second_) / stairs;
  }

  std::vector<double> min_lr_, max_lr_, min_mom_, max_mom_;
  double first_ = 0, second_ = 0, first_stairs_ = 0, second_stairs_ = 0;
  double decay_step_ = 0, decay_lr_rate_ = 0, decay_mom_rate_ = 0;
  bool cycles_momentum_ = false;
};

constexpr std::array<std::string_view, 5> kTypes = {"LRRangeTest", "OneCycle", "WarmupLR", "WarmupDecayLR",
                                                    "WarmupCosineLR"};

}  // namespace

std::optional<std::vector<GroupRate>> LrSchedule::initial() const {
  if (position_ != -1) return std::nullopt;
  return rates();
}

std::unique_ptr<LrSchedule> LrSchedule::make(const std::string& type, const std::string& params_json,
                                             const std::vector<ScheduledGroup>& groups, bool has_betas,
                                             std::vector<std::string>& warnings) {
  ParamReader params("scheduler.params", params_json);
  std::unique_ptr<LrSchedule> made;
  if (type == "WarmupLR" || type == "WarmupDecayLR") {
    made = std::make_unique<WarmupSchedule>(params, groups, type == "WarmupDecayLR", warnings);
  } else if (type == "WarmupCosineLR") {
    made = std::make_unique<CosineSchedule>(params, groups, warnings);
  } else if (type == "LRRangeTest") {
    made = std::make_unique<RangeTest>(params, groups);
  } else if (type == "OneCycle") {
    made = std::make_unique<OneCycle>(params, groups, has_betas);
    if (!has_betas) warnings.push_back("scheduler.params.cycle_momentum is off: the optimizer has no betas");
  } else {
    ds_throw<ConfigError>(
        "scheduler.type \"{}\" is not known here: use one of {} (classes of torch.optim are Python's)", type,
        fmt::join(kTypes, ", "));
  }
  made->position_ = params.count("last_batch_iteration", -1);
  params.finish();
  return made;
}

}  // namespace deepscale
