#include "zero/loss_scaler.h"

#include <algorithm>

#include "base/error.h"

namespace deepscale {

LossScaler::LossScaler(const Options& options)
    : options_(options), state_{options.initial_scale, 0, -1, options.hysteresis} {}

void LossScaler::update(bool overflow) {
  if (!options_.dynamic) return;
  if (overflow) {
    on_overflow();
  } else {
    on_clean_step();
  }
  ++state_.iteration;
}

void LossScaler::on_overflow() {
  state_.last_overflow = state_.iteration;
  if (options_.hysteresis > 1 && state_.hysteresis_left > 1) {
    --state_.hysteresis_left;
    return;
  }
  DS_CHECK(
      !options_.error_at_minimum || state_.scale > options_.min_scale,
      "the loss scale is already at its minimum {} and gradients are still not finite: the model diverges in fp16; "
      "use bf16, lower the learning rate, or set fp16.min_loss_scale below {}",
      options_.min_scale, options_.min_scale);
  state_.scale = std::max(state_.scale / 2, options_.min_scale);
}

void LossScaler::on_clean_step() {
  if (options_.consecutive_hysteresis) state_.hysteresis_left = options_.hysteresis;
  const int64_t stable = state_.iteration - state_.last_overflow - 1;
  if (stable > 0 && stable % options_.window == 0) {
    if (!options_.consecutive_hysteresis) state_.hysteresis_left = options_.hysteresis;
    state_.scale *= 2;
  }
}

}  // namespace deepscale
