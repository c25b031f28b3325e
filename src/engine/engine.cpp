// The training step itself; see engine_setup.cpp for construction and engine_state.cpp for reading and writing state.
#include "engine/engine.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "zero/flat_ops.h"

namespace deepscale {

int Engine::find_unit(const ParamUnit& unit) const {
  for (size_t u = 0; u < units_.size(); ++u) {
    if (units_[u].get() == &unit) return static_cast<int>(u);
  }
  ds_throw<Error>("unit {} does not belong to this engine", unit.name());
}

void Engine::announce_use(int unit) {
  if (!schedules_) return;
  if (!c10::GradMode::is_enabled() && !uses_[unit].in_backward && scheduler_->begins_with(unit)) {
    scheduler_->end_iteration();  // forward-only: the first unit again is a new iteration
  }
  for (const int ahead : scheduler_->on_use(unit, live_numel_)) {
    if (!units_[ahead]->gathered()) units_[ahead]->prefetch();
  }
}

void Engine::pre_forward(ParamUnit& unit, const std::vector<at::Tensor>& inputs) {
  const int u = find_unit(unit);
  announce_use(u);
  if (!unit.gathered()) live_numel_ += unit.gather_cost_numel();
  unit.gather();
  if (!c10::GradMode::is_enabled() || !uses_[u].has_frozen) return;
  // Gradients of all parameters cannot tell when backward is through with frozen ones; the input's gradient can.
  for (const auto& input : inputs) {
    if (!input.requires_grad() || !input.grad_fn()) continue;
    input.register_hook([this, alive = std::weak_ptr<bool>(alive_), u](const at::Tensor&) {
      if (!alive.expired()) post_backward(u);
    });
    break;
  }
}

void Engine::post_forward(ParamUnit& unit, const std::vector<at::Tensor>& outputs) {
  const int u = find_unit(unit);
  if (!(schedules_ && scheduler_->keep_after(u, live_numel_))) {
    unit.release();
    if (!unit.gathered()) live_numel_ -= unit.gather_cost_numel();
  }
  if (!c10::GradMode::is_enabled()) return;
  for (const auto& output : outputs) {
    if (!output.requires_grad()) continue;
    output.register_hook([this, alive = std::weak_ptr<bool>(alive_), u](const at::Tensor&) {
      if (!alive.expired()) pre_backward(u);
    });
  }
}

void Engine::pre_backward(int unit) {
  UnitUse& use = uses_[unit];
  if (use.in_backward) return;
  use.in_backward = true;
  use.grads_arrived = 0;
  announce_use(unit);
  if (!units_[unit]->gathered()) live_numel_ += units_[unit]->gather_cost_numel();
  units_[unit]->gather();
}

void Engine::post_backward(int unit) {
  UnitUse& use = uses_[unit];
  if (!use.in_backward) return;
  use.in_backward = false;
  units_[unit]->release();
  if (!units_[unit]->gathered()) live_numel_ -= units_[unit]->gather_cost_numel();
}

void Engine::on_gradient(int unit, int index) {
  reducer_->take(unit, index);
  settled_ = false;
  UnitUse& use = uses_[unit];
  if (!use.in_backward || use.has_frozen) return;
  if (++use.grads_arrived == use.trainable) post_backward(unit);
}

at::Tensor Engine::backward_seed(const at::Tensor& loss, double divide_by) {
  DS_CHECK(loss.numel() == 1, "backward needs a scalar loss, got shape [{}]: reduce it (for instance by .mean()) first",
           fmt::join(loss.sizes(), ", "));
  reducer_->begin_backward();
  const c10::NoGradGuard no_grad;
  return at::full(loss.sizes(), scaler_.scale() / divide_by, loss.options().requires_grad(false));
}

void Engine::finish_backward() {
  reducer_->finish_backward();
  for (size_t u = 0; u < units_.size(); ++u) {
    uses_[u].in_backward = false;
    units_[u]->release_all();
  }
  live_numel_ = 0;
  if (schedules_) scheduler_->end_iteration();
}

void Engine::settle() {
  if (settled_) return;
  reducer_->settle();
  for (size_t u = 0; u < units_.size(); ++u) {
    if (uses_[u].trainable > 0) reducer_->wait_settled(static_cast<int>(u));
  }
  settled_ = true;
}

bool Engine::prepare_step() {
  DS_CHECK(optimizer_->options().kind != OptimizerKind::kNone,
           "this engine has no optimizer: pass one to initialize() or name one in the configuration's \"optimizer\"");
  const c10::NoGradGuard no_grad;
  finish_backward();
  for (size_t u = 0; u < units_.size(); ++u) {
    if (!units_[u]->check_in_place()) continue;
    for (int i = 0; i < units_[u]->layout().tensors(); ++i) optimizer_->refresh_master(static_cast<int>(u), i);
  }
  if (!settled_) reducer_->settle();
  for (size_t u = 0; u < units_.size(); ++u) {
    if (uses_[u].trainable == 0) continue;
    reducer_->wait_settled(static_cast<int>(u));
    norm_->add_unit(static_cast<int>(u), reducer_->settled(static_cast<int>(u)));
  }
  settled_ = true;
  const GradNorm::Result result = norm_->combine();
  const double scale = scaler_.scale();
  const bool nonfinite = !std::isfinite(result.norm);
  grad_norm_ = nonfinite ? std::numeric_limits<double>::infinity() : result.norm / scale;
  overflow_ = nonfinite && options_.skip_nonfinite;
  nonfinite_parameter_ =
      nonfinite && result.first_nonfinite_index >= 0 ? params_[result.first_nonfinite_index].name : "";
  const double clip = options_.gradient_clipping;
  const double excess = clip > 0 && !nonfinite ? (result.norm / scale + 1e-6) / clip : 1.0;
  grad_scale_ = 1.0 / (scale * std::max(1.0, excess));
  if (overflow_ && !scaler_.dynamic()) {
    log_.error(
        "step {}: the gradient of parameter {} is not finite; the update is skipped and weights stay as they are",
        optimizer_steps_ + skipped_steps_ + 1, nonfinite_parameter_);
  }
  if (overflow_ || optimizer_->options().kind != OptimizerKind::kExternal) return !overflow_;
  for (size_t u = 0; u < units_.size(); ++u) {
    if (uses_[u].trainable == 0) continue;
    optimizer_->prepare_external(static_cast<int>(u), reducer_->settled(static_cast<int>(u)), grad_scale_);
  }
  return true;
}

bool Engine::step(const std::vector<GroupHyper>& hyper) {
  for (const auto& param : params_) {
    DS_CHECK(param.group < static_cast<int>(hyper.size()),
             "parameter {} is in optimizer group {}, but hyper-parameters came for {} groups", param.name, param.group,
             hyper.size());
    if (param.group >= 0) break;
  }
  const bool apply = prepare_step();
  if (apply) {
    const c10::NoGradGuard no_grad;
    std::vector<Pending> published;
    for (size_t u = 0; u < units_.size(); ++u) {
      if (uses_[u].trainable == 0) continue;
      const int unit = static_cast<int>(u);
      optimizer_->step_unit(unit, reducer_->settled(unit), hyper, optimizer_steps_ + 1, grad_scale_);
      published.push_back(units_[u]->publish());
    }
    for (auto& pending : published) pending.wait();
  }
  finish_step(apply);
  return apply;
}

void Engine::publish() {
  std::vector<Pending> published;
  for (auto& unit : units_) published.push_back(unit->publish());
  for (auto& pending : published) pending.wait();
}

void Engine::finish_step(bool applied) {
  const c10::NoGradGuard no_grad;
  if (applied) {
    ++optimizer_steps_;
    if (optimizer_->options().kind == OptimizerKind::kExternal) {
      for (size_t u = 0; u < units_.size(); ++u) {
        if (uses_[u].trainable > 0) optimizer_->finish_external(static_cast<int>(u));
      }
      publish();
    }
    for (const auto& unit : units_) {
      if (!unit->needs_publish_barrier()) continue;
      unit->plan().params.barrier("publish");
      break;
    }
  } else {
    ++skipped_steps_;
  }
  zero_grad();
  scaler_.update(!applied && overflow_);
}

void Engine::zero_grad() {
  reducer_->clear();
  settled_ = false;
}

}  // namespace deepscale
