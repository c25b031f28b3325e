#include "zero/grad_reducer.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "zero/flat_ops.h"

namespace deepscale {
namespace {

// Buckets that may wait for slow readers before this rank waits for them.
constexpr size_t kSpareBuckets = 3;
// Reductions under way while backward goes on.
constexpr size_t kInFlight = 1;

}  // namespace

GradReducer::GradReducer(std::vector<ParamUnit*> units, std::vector<std::vector<bool>> trainable, Options options)
    : options_(options) {
  for (size_t u = 0; u < units.size(); ++u) {
    UnitState state;
    state.unit = units[u];
    state.trainable = std::move(trainable[u]);
    state.written.assign(state.trainable.size(), false);
    state.trainable_count = static_cast<int>(std::count(state.trainable.begin(), state.trainable.end(), true));
    if (state.trainable_count > 0 && units[u]->plan().reduces_each_micro_batch()) order_.push_back(static_cast<int>(u));
    units_.push_back(std::move(state));
  }
}

at::ScalarType GradReducer::bucket_dtype(const UnitState& state) const {
  return options_.communication_dtype.value_or(state.unit->dtype());
}

at::ScalarType GradReducer::sum_dtype(const UnitState& state) const {
  return options_.accumulation_dtype.value_or(state.unit->dtype());
}

ReduceOp GradReducer::op() const {
  const bool plain_average = options_.average && !options_.prescale && options_.predivide_factor == 1.0;
  return plain_average ? ReduceOp::kAvg : ReduceOp::kSum;
}

double GradReducer::scale_before(const UnitState& state) const {
  if (!options_.average) return 1.0;
  if (options_.prescale) return 1.0 / state.unit->plan().data.size();
  return 1.0 / options_.predivide_factor;
}

double GradReducer::scale_after(const UnitState& state) const {
  if (op() == ReduceOp::kAvg || !options_.average || options_.prescale) return 1.0;
  return options_.predivide_factor / state.unit->plan().data.size();
}

at::Tensor GradReducer::slot(const UnitState& state, const at::Tensor& buffer, int index) const {
  const ShardLayout& layout = state.unit->layout();
  return flat::slice(buffer, layout.offset(index), layout.numel(index));
}

void GradReducer::take(int unit, int index) {
  UnitState& state = units_[unit];
  const NamedParam& param = state.unit->params()[index];
  const at::Tensor& grad = param.tensor.grad();
  if (!grad.defined()) return;
  DS_CHECK(
      grad.numel() == state.unit->layout().numel(index),
      "the gradient of parameter {} has shape [{}], the parameter had [{}] when the engine was built; do not resize "
      "parameters of a running engine",
      param.name, fmt::join(grad.sizes(), ", "), fmt::join(state.unit->shape(index), ", "));
  open_ = true;
  has_gradients_ = true;
  if (state.unit->plan().reduces_each_micro_batch()) {
    take_in_bucket(state, index, param.tensor);
  } else {
    take_whole(state, index, param.tensor);
  }
}

void GradReducer::take_whole(UnitState& state, int index, const at::Tensor& param) {
  if (!state.whole.defined()) {
    state.whole =
        state.unit->plan().data.allocate(state.unit->layout().total_numel(), sum_dtype(state), state.unit->device());
  }
  const at::Tensor place = slot(state, state.whole, index);
  const at::Tensor& grad = param.grad();
  if (grad.const_data_ptr() == place.const_data_ptr()) return;  // accumulated in place
  const at::Tensor dense = flat::plain(grad, grad.scalar_type(), grad.device());
  if (state.written[index]) {
    flat::add(dense, place);
  } else {
    flat::copy(dense, place);
  }
  state.written[index] = true;
  const bool can_alias = sum_dtype(state) == param.scalar_type() && param.numel() == place.numel();
  param.mutable_grad() = can_alias ? place.view(state.unit->shape(index)) : at::Tensor();
}

void GradReducer::take_in_bucket(UnitState& state, int index, const at::Tensor& param) {
  if (!state.bucket.defined()) {
    state.bucket = acquire(state);
    std::fill(state.written.begin(), state.written.end(), false);
    state.arrived = 0;
  }
  const at::Tensor place = slot(state, state.bucket, index);
  const at::Tensor dense = flat::plain(param.grad(), param.grad().scalar_type(), state.unit->device());
  if (state.written[index]) {
    flat::add(dense, place, scale_before(state));
  } else {
    flat::copy(dense, place, scale_before(state));
    state.written[index] = true;
    ++state.arrived;
  }
  param.mutable_grad() = at::Tensor();
  if (state.arrived != state.trainable_count || state.sent) return;
  if (!order_observed_) completed_.push_back(static_cast<int>(&state - units_.data()));
  send_ready();
}

at::Tensor GradReducer::acquire(const UnitState& state) {
  const int64_t numel = state.unit->layout().total_numel();
  const at::ScalarType dtype = bucket_dtype(state);
  const auto fits = [&](const Spare& spare) {
    return spare.buffer.numel() >= numel && spare.buffer.numel() <= 2 * numel && spare.buffer.scalar_type() == dtype;
  };
  if (spares_.size() >= kSpareBuckets) {
    auto found = std::find_if(spares_.begin(), spares_.end(), fits);
    if (found == spares_.end()) found = spares_.begin();  // the oldest goes, to keep the pool small
    found->reader.wait_released();
    at::Tensor buffer = std::move(found->buffer);
    spares_.erase(found);
    if (buffer.numel() >= numel && buffer.scalar_type() == dtype) {
      buffer = flat::slice(buffer, 0, numel);
      flat::zero_padding(buffer, state.unit->layout());
      return buffer;
    }
  }
  return state.unit->plan().grads.allocate(numel, dtype, state.unit->device());
}

void GradReducer::send_ready() {
  while (next_ < order_.size()) {
    UnitState& state = units_[order_[next_]];
    if (!state.bucket.defined() || state.arrived != state.trainable_count) return;
    send(state);
    ++next_;
  }
}

void GradReducer::send(UnitState& state) {
  if (!state.bucket.defined()) {
    state.bucket = acquire(state);
    std::fill(state.written.begin(), state.written.end(), false);
  }
  for (size_t i = 0; i < state.written.size(); ++i) {
    if (!state.written[i]) slot(state, state.bucket, static_cast<int>(i)).zero_();
  }
  ParamUnit& unit = *state.unit;
  const int64_t shard_numel = unit.layout().shard_numel();
  if (!state.shard.defined()) {
    state.shard = Communicator::self().allocate(shard_numel, sum_dtype(state), unit.device());
  }
  complete(state);  // an earlier round of the same unit
  const bool direct = !state.shard_valid && bucket_dtype(state) == sum_dtype(state);
  state.scratch = direct
                      ? at::Tensor()
                      : at::empty({shard_numel}, at::TensorOptions().dtype(bucket_dtype(state)).device(unit.device()));
  state.pending =
      unit.plan().grads.reduce_scatter(state.bucket, direct ? state.shard : state.scratch, op(), unit.name());
  state.sent = true;
  in_flight_.push_back(static_cast<int>(&state - units_.data()));
  // In shared memory a reduction costs nothing until somebody waits, so it is always left in flight.
  complete_all_but(options_.overlap || unit.plan().grads.shares_memory() ? kInFlight : 0);
}

void GradReducer::complete(UnitState& state) {
  if (state.pending.empty()) return;
  state.pending.wait();
  if (state.scratch.defined()) {
    if (state.shard_valid) {
      flat::add(state.scratch, state.shard, scale_after(state));
    } else {
      flat::copy(state.scratch, state.shard, scale_after(state));
    }
    state.scratch = at::Tensor();
  } else if (scale_after(state) != 1.0) {
    state.shard.mul_(scale_after(state));
  }
  state.shard_valid = true;
  spares_.push_back({std::move(state.bucket), std::move(state.pending)});
  state.bucket = at::Tensor();
  state.pending = Pending();
}

void GradReducer::complete_all_but(size_t in_flight) {
  while (in_flight_.size() > in_flight) {
    complete(units_[in_flight_.front()]);
    in_flight_.pop_front();
  }
}

void GradReducer::adopt_order() {
  order_observed_ = true;
  if (order_.size() < 2) return;
  std::vector<int64_t> wanted(completed_.begin(), completed_.end());
  for (const int unit : order_) {
    if (std::find(completed_.begin(), completed_.end(), unit) == completed_.end()) wanted.push_back(unit);
  }
  const Communicator& data = units_[order_.front()].unit->plan().data;
  at::Tensor shared = at::empty({static_cast<int64_t>(wanted.size())}, at::kLong);
  std::copy(wanted.begin(), wanted.end(), shared.mutable_data_ptr<int64_t>());
  at::Tensor travelling = shared.to(units_[order_.front()].unit->device());
  data.broadcast(travelling, 0, "order of reductions").wait_released();
  shared = travelling.cpu();
  const auto* first = shared.const_data_ptr<int64_t>();
  order_.assign(first, first + shared.numel());
}

void GradReducer::finish_backward() {
  if (!open_) return;
  open_ = false;
  const c10::NoGradGuard no_grad;
  for (; next_ < order_.size(); ++next_) send(units_[order_[next_]]);
  for (const int unit : order_) {
    UnitState& state = units_[unit];
    if (state.bucket.defined() && state.pending.empty()) send(state);  // second round
  }
  complete_all_but(0);
  for (const int unit : order_) units_[unit].sent = false;
  next_ = 0;
  if (!order_.empty() && !order_observed_) adopt_order();
}

void GradReducer::settle() {
  const c10::NoGradGuard no_grad;
  for (auto& state : units_) {
    if (state.trainable_count > 0) settle_unit(state);
  }
}

void GradReducer::settle_unit(UnitState& state) {
  const ShardingPlan& plan = state.unit->plan();
  const int64_t shard_numel = state.unit->layout().shard_numel();
  if (plan.reduces_each_micro_batch()) {
    if (!state.shard_valid) {
      state.shard = Communicator::self().allocate(shard_numel, sum_dtype(state), state.unit->device());
      state.shard_valid = true;
    }
    if (!plan.replicas.is_self()) state.pending = plan.replicas.all_reduce(state.shard, op(), state.unit->name());
    return;
  }
  if (!state.whole.defined()) {
    state.whole = plan.data.allocate(state.unit->layout().total_numel(), sum_dtype(state), state.unit->device());
  }
  for (size_t i = 0; i < state.written.size(); ++i) {
    if (!state.written[i]) slot(state, state.whole, static_cast<int>(i)).zero_();
  }
  if (plan.data.is_self()) return;
  state.scratch = bucket_dtype(state) == sum_dtype(state) && scale_before(state) == 1.0
                      ? state.whole
                      : plan.data.allocate(state.whole.numel(), bucket_dtype(state), state.unit->device());
  if (!state.scratch.is_same(state.whole)) flat::copy(state.whole, state.scratch, scale_before(state));
  if (plan.optimizer.is_self()) {
    state.pending = plan.replicas.all_reduce(state.scratch, op(), state.unit->name());
  } else {
    const at::Tensor own = flat::slice(state.scratch, plan.shard_rank() * shard_numel, shard_numel);
    state.pending = plan.optimizer.reduce_scatter(state.scratch, own, op(), state.unit->name());
  }
}

void GradReducer::wait_settled(int unit) {
  UnitState& state = units_[unit];
  const ShardingPlan& plan = state.unit->plan();
  if (state.pending.empty()) return;
  const c10::NoGradGuard no_grad;
  state.pending.wait();
  const bool second = !plan.reduces_each_micro_batch() && !plan.optimizer.is_self() && !plan.replicas.is_self();
  const int64_t shard_numel = state.unit->layout().shard_numel();
  const at::Tensor& buffer = state.scratch;
  if (second) {
    const at::Tensor own = flat::slice(buffer, plan.shard_rank() * shard_numel, shard_numel);
    plan.replicas.all_reduce(own, op(), state.unit->name()).wait_released();
  }
  state.pending.wait_released();
  state.pending = Pending();
  if (plan.reduces_each_micro_batch()) return;
  const at::Tensor result = settled(unit);
  if (!buffer.is_same(state.whole)) {
    flat::copy(flat::slice(buffer, plan.shard_rank() * shard_numel, shard_numel), result, scale_after(state));
  } else if (scale_after(state) != 1.0) {
    result.mul_(scale_after(state));
  }
  state.scratch = at::Tensor();
}

at::Tensor GradReducer::settled(int unit) const {
  const UnitState& state = units_[unit];
  if (state.unit->plan().reduces_each_micro_batch()) return state.shard;
  const int64_t shard_numel = state.unit->layout().shard_numel();
  return flat::slice(state.whole, state.unit->plan().shard_rank() * shard_numel, shard_numel);
}

void GradReducer::clear() {
  for (auto& state : units_) {
    std::fill(state.written.begin(), state.written.end(), false);
    state.shard_valid = false;
    for (const auto& param : state.unit->params()) {
      if (param.tensor.grad().defined()) param.tensor.mutable_grad() = at::Tensor();
    }
  }
  has_gradients_ = false;
}

int64_t GradReducer::gradient_bytes() const {
  int64_t bytes = 0;
  for (const auto& state : units_) {
    if (state.whole.defined()) bytes += static_cast<int64_t>(state.whole.nbytes());
    if (state.shard.defined()) bytes += static_cast<int64_t>(state.shard.nbytes());
  }
  return bytes;
}

int64_t GradReducer::bucket_bytes() const {
  int64_t bytes = 0;
  for (const auto& spare : spares_) bytes += static_cast<int64_t>(spare.buffer.nbytes());
  for (const auto& state : units_) {
    if (state.bucket.defined()) bytes += static_cast<int64_t>(state.bucket.nbytes());
  }
  return bytes;
}

}  // namespace deepscale
