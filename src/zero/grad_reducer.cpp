#include "zero/grad_reducer.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <numeric>

#include "base/error.h"
#include "comm/host_values.h"
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
    if (state.trainable_count > 0 && reduces(state)) {
      order_.push_back(static_cast<int>(u));
      if (lives_in_file(state)) place_in_file(state);
    }
    units_.push_back(std::move(state));
  }
}

/// In a group of one nothing has to leave the rank, but what lives in a file has to leave memory.
bool GradReducer::reduces(const UnitState& state) const {
  const ShardingPlan& plan = state.unit->plan();
  return plan.reduces_each_micro_batch() || (plan.shards_grads && lives_in_file(state));
}

bool GradReducer::lives_in_file(const UnitState& state) const {
  const int64_t bytes = state.unit->layout().shard_numel() * static_cast<int64_t>(c10::elementSize(sum_dtype(state)));
  // MiCS reduces the shards of all groups once more at the boundary, in memory.
  return options_.file != nullptr && state.unit->device().is_cpu() && state.unit->plan().replicas.is_self() &&
         bytes >= options_.smallest_in_file_bytes;
}

/// Done ahead of training, so that a disk without room is an error then.
void GradReducer::place_in_file(UnitState& state) const {
  state.stored = FileTensor(*options_.file, state.unit->layout().shard_numel(), sum_dtype(state),
                            "gradients of " + state.unit->name());
  state.shard = state.stored.tensor();
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
  const at::Tensor param = state.unit->param(index);
  if (!param.defined() || !param.grad().defined()) return;
  const at::Tensor& grad = param.grad();
  DS_CHECK(
      grad.numel() == state.unit->layout().numel(index),
      "the gradient of parameter {} has shape [{}], the parameter had [{}] when the engine was built; do not resize "
      "parameters of a running engine",
      state.unit->param_name(index), fmt::join(grad.sizes(), ", "), fmt::join(state.unit->shape(index), ", "));
  reopen();
  begin_backward();
  if (!reduces(state)) {
    take_whole(state, index, param);
  } else if (state.sent) {
    take_late(state, index, param);
  } else {
    take_in_bucket(state, index, param);
  }
}

/// Whether param.grad can be a view of the unit's gradient buffer.
bool GradReducer::aliases(const UnitState& state) const {
  return sum_dtype(state) == state.unit->dtype();
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
  // With create_graph autograd accumulates out of place: the new tensor holds what the slot held, too.
  const bool holds_sum = aliases(state) && c10::GradMode::is_enabled();
  if (state.written[index] && !holds_sum) {
    flat::add(dense, place);
  } else {
    flat::copy(dense, place);
  }
  state.written[index] = true;
  param.mutable_grad() = aliases(state) ? place.view(state.unit->shape(index)) : at::Tensor();
}

void GradReducer::open_bucket(UnitState& state) {
  if (state.bucket.defined()) return;
  state.in_place = state.unit->plan().grads.is_self() && !state.shard_valid && bucket_dtype(state) == sum_dtype(state);
  if (state.in_place) {
    open_shard(state, /*keep_values=*/false);
    state.bucket = state.shard;
    flat::zero_padding(state.bucket, state.unit->layout());
  } else {
    if (state.shard_valid && state.stored.defined()) state.stored.start_load();  // it will be added to
    state.bucket_memory = acquire(state);
    state.bucket = flat::slice(state.bucket_memory, 0, state.unit->layout().total_numel());
  }
  std::fill(state.written.begin(), state.written.end(), false);
  state.arrived = 0;
}

void GradReducer::take_in_bucket(UnitState& state, int index, const at::Tensor& param) {
  open_bucket(state);
  const at::Tensor place = slot(state, state.bucket, index);
  const at::Tensor dense = flat::plain(param.grad(), param.grad().scalar_type(), state.unit->device());
  param.mutable_grad() = at::Tensor();
  if (state.written[index]) {
    flat::add(dense, place, scale_before(state));
    return;
  }
  flat::copy(dense, place, scale_before(state));
  state.written[index] = true;
  if (++state.arrived != state.trainable_count) return;
  if (!order_observed_) completed_.push_back(static_cast<int>(&state - units_.data()));
  if (state.unit->plan().grads.is_self()) {
    send(state);
  } else {
    send_ready();
  }
}

void GradReducer::take_late(UnitState& state, int index, const at::Tensor& param) {
  if (!state.late.defined()) {
    const int64_t numel = state.unit->layout().total_numel();
    state.late = state.unit->plan().grads.allocate(numel, bucket_dtype(state), state.unit->device());
  }
  const at::Tensor dense = flat::plain(param.grad(), param.grad().scalar_type(), state.unit->device());
  param.mutable_grad() = at::Tensor();
  flat::add(dense, slot(state, state.late, index), scale_before(state));
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
      flat::zero_padding(buffer, state.unit->layout());
      return buffer;
    }
  }
  return state.unit->plan().grads.allocate(numel, dtype, state.unit->device());
}

/// [shard_numel] in the dtype in which gradients travel.
at::Tensor GradReducer::acquire_scratch(const UnitState& state) {
  const int64_t numel = state.unit->layout().shard_numel();
  const at::TensorOptions options = at::TensorOptions().dtype(bucket_dtype(state)).device(state.unit->device());
  const auto fits = std::find_if(scratches_.begin(), scratches_.end(), [&](const at::Tensor& free) {
    return free.numel() == numel && free.scalar_type() == bucket_dtype(state) && free.device() == options.device();
  });
  if (fits == scratches_.end()) return at::empty({numel}, options);
  at::Tensor scratch = std::move(*fits);
  scratches_.erase(fits);
  return scratch;
}

void GradReducer::send_ready() {
  for (; next_ < order_.size(); ++next_) {
    UnitState& state = units_[order_[next_]];
    if (state.sent) continue;
    if (!state.bucket.defined() || state.arrived != state.trainable_count) return;
    send(state);
  }
}

void GradReducer::send(UnitState& state) {
  open_bucket(state);
  for (size_t i = 0; i < state.written.size(); ++i) {
    if (!state.written[i]) slot(state, state.bucket, static_cast<int>(i)).zero_();
  }
  ParamUnit& unit = *state.unit;
  const bool direct = !state.shard_valid && bucket_dtype(state) == sum_dtype(state);
  if (direct && !state.in_place) open_shard(state, /*keep_values=*/false);
  state.scratch = direct ? at::Tensor() : acquire_scratch(state);
  RECORD_USER_SCOPE(fmt::format("reduce {}", unit.name()));
  if (!state.in_place) {
    state.pending =
        unit.plan().grads.reduce_scatter(state.bucket, direct ? state.shard : state.scratch, op(), unit.name());
  }
  state.sent = true;
  in_flight_.push_back(static_cast<int>(&state - units_.data()));
  // In shared memory a reduction costs nothing until somebody waits, so it is always left in flight.
  const bool in_background = unit.device().is_cpu() && unit.plan().grads.shares_memory();
  complete_all_but(options_.overlap || in_background ? kInFlight : 0);
}

/// Gives the shard memory. keep_values: with what it holds.
void GradReducer::open_shard(UnitState& state, bool keep_values) {
  if (!state.shard.defined()) {
    state.shard =
        Communicator::self().allocate(state.unit->layout().shard_numel(), sum_dtype(state), state.unit->device());
  }
  if (!state.stored.defined()) return;
  if (keep_values) {
    state.stored.load();
  } else {
    state.stored.load_for_overwrite();
  }
}

void GradReducer::close_shard(UnitState& state) {
  if (!state.stored.defined()) return;
  if (listener_) listener_(static_cast<int>(&state - units_.data()), state.shard);
  state.stored.start_store();
}

void GradReducer::set_shard_listener(std::function<void(int unit, const at::Tensor& shard)> listener) {
  listener_ = std::move(listener);
}

void GradReducer::complete(UnitState& state) {
  state.pending.wait();
  store(state);
  if (!state.in_place) spares_.push_back({std::move(state.bucket_memory), std::move(state.pending)});
  state.bucket = state.bucket_memory = at::Tensor();
  state.pending = Pending();
}

/// A reduction's result, in the scratch or in the shard itself, becomes part of the shard.
void GradReducer::store(UnitState& state) {
  if (state.scratch.defined()) open_shard(state, /*keep_values=*/state.shard_valid);
  if (!state.scratch.defined()) {
    if (scale_after(state) != 1.0) state.shard.mul_(scale_after(state));
  } else if (state.shard_valid) {
    flat::add(state.scratch, state.shard, scale_after(state));
  } else {
    flat::copy(state.scratch, state.shard, scale_after(state));
  }
  if (state.scratch.defined()) {
    if (scratches_.size() > kInFlight) scratches_.erase(scratches_.begin());  // the oldest goes, to keep the pool small
    scratches_.push_back(std::move(state.scratch));
    state.scratch = at::Tensor();
  }
  state.shard_valid = true;
  close_shard(state);
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
  const ParamUnit& any = *units_[order_.front()].unit;
  const auto agreed = broadcast_values(any.plan().data, any.device(), std::move(wanted), 0, "order of reductions");
  order_.assign(agreed.begin(), agreed.end());
  std::vector<int> sorted = order_;
  std::sort(sorted.begin(), sorted.end());
  DS_CHECK(std::adjacent_find(sorted.begin(), sorted.end()) == sorted.end(),
           "the order of reductions [{}] names a unit twice", fmt::join(order_, ", "));
}

void GradReducer::finish_backward() {
  if (!open_) return;
  open_ = false;
  const c10::NoGradGuard no_grad;
  for (; next_ < order_.size(); ++next_) {
    if (!units_[order_[next_]].sent) send(units_[order_[next_]]);
  }
  complete_all_but(0);
  for (const int unit : order_) units_[unit].sent = false;
  next_ = 0;
  if (!order_.empty() && !order_observed_) adopt_order();
}

/// Units with a late gradient on any rank, in order_'s order.
std::vector<int> GradReducer::units_with_late_gradients() const {
  if (order_.empty()) return {};
  const ParamUnit& any = *units_[order_.front()].unit;
  std::vector<int64_t> flags;
  for (const int unit : order_) flags.push_back(units_[unit].late.defined() ? 1 : 0);
  const auto on_any_rank = [&](std::vector<int64_t> values) {
    return all_reduce_values(any.plan().data, any.device(), std::move(values), ReduceOp::kMax, "late gradients");
  };
  // There are hardly ever any: one number tells.
  if (on_any_rank({*std::max_element(flags.begin(), flags.end())}).front() == 0) return {};
  flags = on_any_rank(std::move(flags));
  std::vector<int> found;
  for (size_t i = 0; i < order_.size(); ++i) {
    if (flags[i] != 0) found.push_back(order_[i]);
  }
  return found;
}

void GradReducer::reduce_late() {
  for (const int index : units_with_late_gradients()) {
    UnitState& state = units_[index];
    ParamUnit& unit = *state.unit;
    if (!state.late.defined()) {
      state.late = unit.plan().grads.allocate(unit.layout().total_numel(), bucket_dtype(state), unit.device());
    }
    state.scratch = acquire_scratch(state);
    unit.plan().grads.reduce_scatter(state.late, state.scratch, op(), unit.name()).wait_released();
    store(state);
    state.late = at::Tensor();
  }
}

void GradReducer::settle() {
  if (settled_) return;
  const c10::NoGradGuard no_grad;
  reduce_late();
  for (auto& state : units_) {
    if (state.trainable_count > 0) settle_unit(state);
  }
  settled_ = true;
}

void GradReducer::settle_unit(UnitState& state) {
  const ShardingPlan& plan = state.unit->plan();
  if (!reduces(state)) {
    settle_whole(state);
    return;
  }
  if (!state.shard_valid) {
    open_shard(state, /*keep_values=*/false);
    state.shard.zero_();
    state.shard_valid = true;
    close_shard(state);
  }
  if (!plan.replicas.is_self()) state.pending = plan.replicas.all_reduce(state.shard, op(), state.unit->name());
}

void GradReducer::settle_whole(UnitState& state) {
  const ShardingPlan& plan = state.unit->plan();
  if (!state.whole.defined()) {
    state.whole = plan.data.allocate(state.unit->layout().total_numel(), sum_dtype(state), state.unit->device());
  }
  for (size_t i = 0; i < state.written.size(); ++i) {
    if (!state.written[i]) slot(state, state.whole, static_cast<int>(i)).zero_();
    // From here on the buffer holds ranks' sums in part: nobody may accumulate into it.
    const at::Tensor param = state.unit->param(static_cast<int>(i));
    if (param.defined() && param.grad().defined()) param.mutable_grad() = at::Tensor();
  }
  if (plan.data.is_self()) return;
  if (bucket_dtype(state) == sum_dtype(state) && scale_before(state) == 1.0) {
    state.scratch = state.whole;
  } else {
    if (!state.scratch.defined()) {
      state.scratch = plan.data.allocate(state.whole.numel(), bucket_dtype(state), state.unit->device());
    }
    flat::copy(state.whole, state.scratch, scale_before(state));
  }
  if (plan.optimizer.is_self()) {
    state.pending = plan.replicas.all_reduce(state.scratch, op(), state.unit->name());
  } else {
    const int64_t shard_numel = state.unit->layout().shard_numel();
    const at::Tensor own = flat::slice(state.scratch, plan.shard_rank() * shard_numel, shard_numel);
    state.pending = plan.optimizer.reduce_scatter(state.scratch, own, op(), state.unit->name());
  }
}

void GradReducer::wait_settled(int unit) {
  UnitState& state = units_[unit];
  const c10::NoGradGuard no_grad;
  if (!state.pending.empty()) receive_settled(state);
  if (!state.carry.defined()) return;
  flat::add(state.carry, settled(unit));
  state.carry = at::Tensor();
}

void GradReducer::receive_settled(UnitState& state) {
  const ShardingPlan& plan = state.unit->plan();
  state.pending.wait();
  if (reduces(state)) {
    state.pending.wait_released();
    state.pending = Pending();
    return;
  }
  const int64_t shard_numel = state.unit->layout().shard_numel();
  const at::Tensor own = flat::slice(state.scratch, plan.shard_rank() * shard_numel, shard_numel);
  if (!plan.optimizer.is_self() && !plan.replicas.is_self()) {
    plan.replicas.all_reduce(own, op(), state.unit->name()).wait_released();
  }
  state.pending.wait_released();
  state.pending = Pending();
  const at::Tensor result = settled(static_cast<int>(&state - units_.data()));
  if (!state.scratch.is_same(state.whole)) {
    flat::copy(own, result, scale_after(state));
    return;
  }
  if (scale_after(state) != 1.0) result.mul_(scale_after(state));
  state.scratch = at::Tensor();
}

void GradReducer::reopen() {
  if (!settled_) return;
  settled_ = false;
  for (size_t u = 0; u < units_.size(); ++u) {
    UnitState& state = units_[u];
    if (state.trainable_count == 0) continue;
    if (!reduces(state)) {
      state.carry = settled(static_cast<int>(u)).clone();
      std::fill(state.written.begin(), state.written.end(), false);
    } else if (!state.unit->plan().replicas.is_self()) {
      state.carry = std::move(state.shard);
      state.shard = at::Tensor();
      state.shard_valid = false;
    }
  }
}

at::Tensor GradReducer::settled(int unit) {
  UnitState& state = units_[unit];
  if (state.stored.defined()) state.stored.load();
  if (reduces(state)) return state.shard;
  const int64_t shard_numel = state.unit->layout().shard_numel();
  return flat::slice(state.whole, state.unit->plan().shard_rank() * shard_numel, shard_numel);
}

bool GradReducer::read_ahead(int unit) {
  UnitState& state = units_[unit];
  return !state.stored.defined() || state.stored.start_load();
}

void GradReducer::release_settled(int unit, bool changed) {
  UnitState& state = units_[unit];
  if (!state.stored.defined()) return;
  if (changed) {
    close_shard(state);
  } else {
    state.stored.drop();
  }
}

void GradReducer::clear() {
  finish_backward();
  settled_ = false;
  for (auto& state : units_) {
    std::fill(state.written.begin(), state.written.end(), false);
    state.shard_valid = false;
    if (state.stored.defined()) state.stored.drop();
    state.late = state.carry = at::Tensor();
    for (int i = 0; i < state.unit->size(); ++i) {
      const at::Tensor param = state.unit->param(i);
      if (param.defined() && param.grad().defined()) param.mutable_grad() = at::Tensor();
    }
  }
  has_gradients_ = false;
}

int64_t GradReducer::gradient_bytes() const {
  int64_t bytes = 0;
  for (const auto& state : units_) {
    if (state.whole.defined()) bytes += static_cast<int64_t>(state.whole.nbytes());
    if (state.shard.defined() && !state.stored.defined()) bytes += static_cast<int64_t>(state.shard.nbytes());
    if (state.late.defined()) bytes += static_cast<int64_t>(state.late.nbytes());
    if (state.carry.defined()) bytes += static_cast<int64_t>(state.carry.nbytes());
  }
  return bytes;
}

int64_t GradReducer::bucket_bytes() const {
  int64_t bytes = 0;
  for (const auto& spare : spares_) bytes += static_cast<int64_t>(spare.buffer.nbytes());
  for (const auto& scratch : scratches_) bytes += static_cast<int64_t>(scratch.nbytes());
  for (const auto& state : units_) {
    if (state.bucket_memory.defined()) bytes += static_cast<int64_t>(state.bucket_memory.nbytes());
    if (state.scratch.defined() && !state.scratch.is_same(state.whole)) {
      bytes += static_cast<int64_t>(state.scratch.nbytes());
    }
  }
  return bytes;
}

}  // namespace deepscale
