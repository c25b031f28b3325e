// Loss scale for fp16 training: decides, touches no tensor.
//
// Dynamic scaling counts steps from 0. A non-finite step spends one unit of the hysteresis budget; when only one is
// left the scale is halved (not below the minimum). After `window` clean steps in a row it doubles. With `consecutive`
// the budget is refilled on every clean step, otherwise only when the scale grows. Narang et al. 2018, "Mixed Precision
// Training" (arXiv 1710.03740), section 3.2.
#pragma once

#include <cstdint>

namespace deepscale {

class LossScaler {
 public:
  struct Options {
    bool dynamic = false;
    double initial_scale = 1.0;
    int64_t window = 1000;
    int64_t hysteresis = 2;
    bool consecutive_hysteresis = false;
    double min_scale = 1.0;
    /// A dynamic scale that overflows at its minimum is the end of training: the error names the setting.
    bool error_at_minimum = true;
  };
  struct State {
    double scale = 1.0;
    int64_t iteration = 0;
    int64_t last_overflow = -1;
    int64_t hysteresis_left = 1;
  };

  LossScaler() = default;
  explicit LossScaler(const Options& options);

  [[nodiscard]] double scale() const { return state_.scale; }
  [[nodiscard]] bool dynamic() const { return options_.dynamic; }
  /// Called once per optimizer step. Throws Error when the scale cannot be lowered any more.
  void update(bool overflow);

  [[nodiscard]] const State& state() const { return state_; }
  void load(const State& state) { state_ = state; }

 private:
  void on_overflow();
  void on_clean_step();

  Options options_;
  State state_;
};

}  // namespace deepscale
