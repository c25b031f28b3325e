// The training step itself; see engine_setup.cpp for construction and engine_state.cpp for reading and writing state.
#include "engine/engine.h"

#include <ATen/Functions.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "memory/file_shares.h"
#include "platform/resources.h"
#include "zero/flat_ops.h"

namespace deepscale {

int Engine::find_unit(const ParamUnit& unit) const {
  for (size_t u = 0; u < units_.size(); ++u) {
    if (units_[u].get() == &unit) return static_cast<int>(u);
  }
  ds_throw<Error>("unit {} does not belong to this engine", unit.name());
}

void Engine::count_live(int unit) {
  UnitUse& use = uses_[unit];
  if (use.live == (units_[unit]->occupied() && !units_[unit]->stays())) return;
  use.live = !use.live;
  live_numel_ += (use.live ? 1 : -1) * units_[unit]->gather_cost_numel();
}

void Engine::announce_use(int unit) {
  if (!schedules_) return;
  const bool forward_only = !c10::GradMode::is_enabled() && !uses_[unit].in_backward;
  ParamScheduler& order = forward_only ? *forward_order_ : *training_order_;
  if (forward_only && order.begins_with(unit)) begin_forward_pass();
  const auto is_live = [this](int ahead) { return uses_[ahead].live; };
  for (const int ahead : order.on_use(unit, live_numel_, is_live)) {
    units_[ahead]->prefetch();
    count_live(ahead);
  }
}

void Engine::enter_use(int unit) {
  announce_use(unit);
  UnitUse& use = uses_[unit];
  if (!use.kept) units_[unit]->gather();
  use.kept = false;
  count_live(unit);
}

void Engine::leave_use(int unit) {
  if (residency_) settle_residence(unit);
  units_[unit]->release();
  count_live(unit);
}

void Engine::begin_forward_pass() {
  if (!residency_) return;
  const MemoryFacts memory = process_memory_facts();
  residency_->adapt(memory.available_bytes, residency_reserve_bytes(memory.total_bytes));
}

/// A unit becomes resident, or stops to be, when it is in memory anyway.
void Engine::settle_residence(int unit) {
  ParamUnit& of = *units_[unit];
  if (residency_->resident(unit) == of.stays() || !of.can_stay()) return;
  if (of.stays()) {
    of.end_stay();
  } else {
    of.stay();
  }
  forward_order_->set_numel(unit, of.stays() ? 0 : of.gather_cost_numel());
}

void Engine::pre_forward(ParamUnit& unit, const std::vector<at::Tensor>& inputs) {
  const int u = find_unit(unit);
  enter_use(u);
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
  const bool trains = c10::GradMode::is_enabled();
  if (trains && schedules_ && !uses_[u].kept && training_order_->keep_after(u, live_numel_)) {
    uses_[u].kept = true;
  } else {
    leave_use(u);
  }
  if (!trains) return;
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
  at::RecordFunction range(at::RecordScope::USER_SCOPE);  // torch.profiler's; inactive when it is off
  const ParamUnit& used = *units_[unit];
  if (range.isActive() && used.sharded() && !used.gathered()) range.before(fmt::format("gather {}", used.name()));
  enter_use(unit);
}

void Engine::post_backward(int unit) {
  UnitUse& use = uses_[unit];
  if (!use.in_backward) return;
  use.in_backward = false;
  leave_use(unit);
}

void Engine::reset_order() {
  training_order_->forget();
  forward_order_->forget();
}

void Engine::on_gradient(int unit, int index) {
  reducer_->take(unit, index);
  UnitUse& use = uses_[unit];
  if (!use.in_backward || use.has_frozen) return;
  if (++use.grads_arrived == use.trainable) post_backward(unit);
}

at::Tensor Engine::backward_seed(const at::Tensor& loss, double divide_by) {
  DS_CHECK(loss.numel() == 1, "backward needs a scalar loss, got shape [{}]: reduce it (for instance by .mean()) first",
           fmt::join(loss.sizes(), ", "));
  if (reducer_->open()) end_backward();  // an exception cut the last one off
  reducer_->begin_backward();
  const c10::NoGradGuard no_grad;
  return at::full(loss.sizes(), scaler_.scale() / divide_by, loss.options().requires_grad(false));
}

void Engine::finish_backward() {
  end_backward();
  reducer_->reopen();
}

void Engine::end_backward() {
  reducer_->finish_backward();
  for (size_t u = 0; u < units_.size(); ++u) {
    uses_[u].in_backward = uses_[u].kept = false;
    units_[u]->release_all();
    count_live(static_cast<int>(u));
  }
  if (!schedules_) return;
  training_order_->end_iteration();
}

void Engine::settle() {
  if (reducer_->open()) end_backward();  // what is still on its way belongs to the gradients
  reducer_->settle();
  for (size_t u = 0; u < units_.size(); ++u) {
    if (uses_[u].trainable > 0) reducer_->wait_settled(static_cast<int>(u));
  }
}

void Engine::check_whole() const {
  DS_CHECK(cut_off_.empty(),
           "{}: some states are changed and others are not. Load a checkpoint with its optimizer states, or build the "
           "engine "
           "anew",
           cut_off_);
}

/// Work after which an error leaves some states changed: the engine is of no use then.
template <typename Work>
void Engine::all_or_cut_off(const Work& work) {
  try {
    work();
  } catch (const std::exception& error) {
    if (cut_off_.empty()) {
      cut_off_ =
          fmt::format("step {} was cut off by an error ({})", optimizer_steps_ + skipped_steps_ + 1, error.what());
    }
    throw;
  }
}

bool Engine::prepare_step() {
  check_whole();
  DS_CHECK(optimizer_->options().kind != OptimizerKind::kNone,
           "this engine has no optimizer: pass one to initialize() or name one in the configuration's \"optimizer\"");
  const c10::NoGradGuard no_grad;
  end_backward();
  for (size_t u = 0; u < units_.size(); ++u) {
    if (!units_[u]->check_in_place()) continue;
    optimizer_->refresh_master(static_cast<int>(u), -1);
  }
  GradNorm::Result result;
  all_or_cut_off([&] { result = settle_norm(); });
  const double scale = scaler_.scale();
  const bool nonfinite = !std::isfinite(result.norm);
  grad_norm_ = nonfinite ? std::numeric_limits<double>::infinity() : result.norm / scale;
  overflow_ = nonfinite && options_.skip_nonfinite;
  nonfinite_parameter_ =
      nonfinite && result.first_nonfinite_index >= 0 ? params_[result.first_nonfinite_index].name : "";
  const double clip = options_.gradient_clipping;
  const double excess = clip > 0 && !nonfinite ? (result.norm / scale + 1e-6) / clip : 1.0;
  grad_scale_ = 1.0 / (scale * std::max(1.0, excess));
  if (overflow_ && !scaler_.dynamic() && options_.groups.data.rank() == 0) {
    log_.error(
        "step {}: the gradient of parameter {} is not finite; the update is skipped and weights stay as they are",
        optimizer_steps_ + skipped_steps_ + 1, nonfinite_parameter_);
  }
  if (overflow_ || optimizer_->options().kind != OptimizerKind::kExternal) return !overflow_;
  all_or_cut_off([&] {
    for (size_t u = 0; u < units_.size(); ++u) {
      if (uses_[u].trainable == 0) continue;
      optimizer_->prepare_external(static_cast<int>(u), reducer_->settled(static_cast<int>(u)), grad_scale_);
    }
  });
  return true;
}

GradNorm::Result Engine::settle_norm() {
  reducer_->settle();
  for (size_t u = 0; u < units_.size(); ++u) {
    if (uses_[u].trainable == 0) continue;
    reducer_->wait_settled(static_cast<int>(u));
    // What lives in files was shown to the norm when it was written.
    if (!reducer_->in_file(static_cast<int>(u))) {
      norm_->add_unit(static_cast<int>(u), reducer_->settled(static_cast<int>(u)));
    }
  }
  return norm_->combine();
}

bool Engine::step(const std::vector<GroupHyper>& hyper) {
  optimizer_->check_hyper(hyper);
  const bool apply = prepare_step();
  if (apply) all_or_cut_off([&] { step_units(hyper); });
  finish_step(apply);
  return apply;
}

void Engine::step_units(const std::vector<GroupHyper>& hyper) {
  const c10::NoGradGuard no_grad;
  std::vector<Pending> published;
  optimizer_->begin_steps([this](int unit) { return reducer_->read_ahead(unit); });
  for (size_t u = 0; u < units_.size(); ++u) {
    if (uses_[u].trainable == 0) continue;
    const int unit = static_cast<int>(u);
    RECORD_USER_SCOPE(fmt::format("update {}", units_[u]->name()));
    optimizer_->step_unit(unit, reducer_->settled(unit), hyper, optimizer_steps_ + 1, grad_scale_);
    reducer_->release_settled(unit);
    published.push_back(units_[u]->publish());
  }
  optimizer_->end_steps();
  finish_publish(published);
}

void Engine::publish() {
  std::vector<Pending> published;
  for (auto& unit : units_) published.push_back(unit->publish());
  finish_publish(published);
}

void Engine::finish_publish(std::vector<Pending>& published) {
  for (auto& pending : published) pending.wait();
  const auto mapped =
      std::find_if(units_.begin(), units_.end(), [](const auto& u) { return u->needs_publish_barrier(); });
  if (mapped != units_.end()) (*mapped)->plan().params.barrier("publish");
}

void Engine::finish_step(bool applied) {
  const c10::NoGradGuard no_grad;
  if (applied) {
    ++optimizer_steps_;
    if (optimizer_->options().kind == OptimizerKind::kExternal) {
      all_or_cut_off([&] {
        for (size_t u = 0; u < units_.size(); ++u) {
          if (uses_[u].trainable > 0) optimizer_->finish_external(static_cast<int>(u));
        }
        publish();
      });
    }
  } else {
    ++skipped_steps_;
  }
  zero_grad();
  scaler_.update(!applied && overflow_);
}

void Engine::zero_grad() {
  if (reducer_->open()) end_backward();
  reducer_->clear();
}

}  // namespace deepscale
