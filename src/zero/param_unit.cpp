#include "zero/param_unit.h"

#include <ATen/Functions.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "zero/flat_ops.h"

namespace deepscale {
namespace {

std::vector<int64_t> element_counts(const std::vector<NamedParam>& params) {
  std::vector<int64_t> counts;
  counts.reserve(params.size());
  for (const auto& param : params) counts.push_back(param.tensor.numel());
  return counts;
}

void check_params(const std::string& unit, const std::vector<NamedParam>& params) {
  DS_CHECK_AS(ConfigError, !params.empty(), "unit {} has no parameters", unit);
  for (const auto& [name, tensor] : params) {
    DS_CHECK_AS(
        ConfigError, at::isFloatingType(tensor.scalar_type()) && !tensor.is_sparse(),
        "parameter {} has dtype {}: only dense floating-point parameters can be trained or sharded; keep it as a "
        "buffer or leave it out",
        name, c10::toString(tensor.scalar_type()));
    DS_CHECK_AS(ConfigError, tensor.device() == params.front().tensor.device(),
                "parameter {} is on {} but {} is on {}: move the whole model to one device first", name,
                tensor.device().str(), params.front().name, params.front().tensor.device().str());
  }
}

}  // namespace

ParamUnit::ParamUnit(std::string name, std::vector<NamedParam> params, ShardingPlan plan, at::ScalarType dtype,
                     const FileTier* tier, Values values)
    : name_(std::move(name)), plan_(std::move(plan)), dtype_(dtype) {
  check_params(name_, params);
  DS_CHECK_AS(
      ConfigError, plan_.shards() % plan_.node.size() == 0 || !sharded(),
      "zero_optimization.zero_hpz_partition_size is {}, but parameters are sharded over {} ranks: choose a divisor",
      plan_.node.size(), plan_.shards());
  layout_ = ShardLayout(element_counts(params), plan_.shards());
  pieces_ = layout_.pieces(plan_.shard_rank());
  for (const auto& param : params) {
    params_.push_back({param.name, decltype(Member::tensor)(param.tensor.getIntrusivePtr())});
    shapes_.push_back(param.tensor.sizes().vec());
  }
  const c10::NoGradGuard no_grad;
  allocate(tier, params.front().tensor.device());
  fill(values, params);
  make_views();
  empty_ = at::empty({0}, flat_.options());
  if (sharded()) {
    point_at_nothing();
  } else {
    point_at_full();
  }
}

at::Tensor ParamUnit::param(int index) const {
  auto tensor = params_[index].tensor.lock();
  return tensor ? at::Tensor(std::move(tensor)) : at::Tensor();
}

void ParamUnit::allocate(const FileTier* tier, at::Device device) {
  const int64_t total = layout_.total_numel();
  if (!sharded()) {
    flat_ = plan_.optimizer.allocate(total, dtype_, device);
  } else if (tier != nullptr && device.is_cpu()) {
    check_node_group();
    store_in(FileTensor(*tier, layout_.shard_numel(), dtype_, "parameters of " + name_));
    return;
  } else if (auto common = plan_.params.allocate_common(total, dtype_, device)) {
    flat_ = *common;
    mapped_ = true;
  } else {
    flat_ = at::empty({total}, at::TensorOptions().dtype(dtype_).device(device));
    shard_ = plan_.params.allocate(layout_.shard_numel(), dtype_, device);
    return;
  }
  shard_ = flat::slice(flat_, plan_.shard_rank() * layout_.shard_numel(), layout_.shard_numel());
}

/// Rank 0's values into this rank's shard (or the flat buffer). One rank copies straight; several need a full copy to
/// send and receive.
void ParamUnit::fill(Values values, const std::vector<NamedParam>& params) {
  if (values == Values::kUndefined && in_file()) return;  // what was never written reads as zeros
  const bool straight = plan_.data.is_self() || !sharded();
  if (straight && in_file()) stored_.load_for_overwrite();
  const at::Tensor whole = !straight   ? plan_.data.allocate(layout_.total_numel(), dtype_, device())
                           : sharded() ? shard_
                                       : flat_;
  if (in_file() && straight) flat::zero_padding(whole, layout_);  // its memory held something else
  for (int i = 0; i < layout_.tensors() && plan_.data.rank() == 0; ++i) {
    const at::Tensor place = flat::slice(whole, layout_.offset(i), layout_.numel(i));
    if (values == Values::kUndefined) {
      place.zero_();
    } else {
      flat::copy(flat::plain(params[i].tensor, params[i].tensor.scalar_type(), device()), place);
    }
  }
  plan_.data.broadcast(whole, 0, name_).wait_released();
  if (!straight) {
    if (in_file()) stored_.load_for_overwrite();
    take_values(whole);
  }
  if (in_file()) stored_.start_store();
}

/// Full-shape views of the flat buffer. Without memory outside of use they are made while there is memory under them;
/// afterwards they only follow the storage's size.
void ParamUnit::make_views() {
  full_.clear();
  if (alone_in_file()) {
    for (int i = 0; i < layout_.tensors(); ++i) {
      full_.push_back(stored_.view(layout_.offset(i), layout_.numel(i)).view(shapes_[i]));
    }
    return;
  }
  for (int i = 0; i < layout_.tensors(); ++i) full_.push_back(slot(i).view(shapes_[i]));
  if (sharded() && !mapped_) flat::resize_storage(flat_, 0);
}

void ParamUnit::check_node_group() const {
  DS_CHECK_AS(
      ConfigError, plan_.node.is_self(),
      "zero_optimization.offload_param.device \"nvme\" and zero_hpz_partition_size {} contradict each other: hpZ keeps "
      "a second shard in memory",
      plan_.node.size());
}

/// The shard is `stored` from now on; without views yet.
void ParamUnit::store_in(FileTensor stored) {
  shard_ = stored.tensor();
  stored_ = std::move(stored);
  flat_ = alone_in_file() ? shard_ : at::empty({layout_.total_numel()}, shard_.options());
}

void ParamUnit::move_to_file(const FileTier& tier) {
  if (!sharded() || !device().is_cpu() || gathered_ || in_file()) return;
  check_node_group();
  const c10::NoGradGuard no_grad;
  drop_prefetch();
  FileTensor stored(tier, layout_.shard_numel(), dtype_, "parameters of " + name_);
  stored.load_for_overwrite();
  flat::copy(shard_, stored.tensor());
  stored.start_store();
  if (mapped_) plan_.params.barrier(name_);  // others may still read the common memory
  mapped_ = false;
  store_in(std::move(stored));
  make_views();
  point_at_nothing();
}

at::Tensor ParamUnit::shard_part(int64_t offset, int64_t length) const {
  return in_file() ? stored_.view(offset, length) : flat::slice(shard_, offset, length);
}

void ParamUnit::visit(bool overwrite) {
  if (!in_file()) return;
  if (overwrite && !stored_.loaded()) {
    stored_.load_for_overwrite();
  } else {
    stored_.load();
  }
}

void ParamUnit::end_visit(bool changed) {
  if (!in_file()) return;
  if (changed) {
    stored_.start_store();
    if (alone_in_file() && gathered_) stored_.load();  // somebody holds the parameters
  } else if (!(alone_in_file() && occupied())) {
    stored_.drop();
  }
}

void ParamUnit::take_values(const at::Tensor& values) {
  flat::copy(flat::slice(values, plan_.shard_rank() * layout_.shard_numel(), layout_.shard_numel()), shard_);
  if (needs_publish_barrier()) plan_.params.barrier(name_);
}

const ShardLayout::Piece* ParamUnit::piece_of(int index) const {
  const auto found =
      std::find_if(pieces_.begin(), pieces_.end(), [&](const auto& piece) { return piece.tensor == index; });
  return found == pieces_.end() ? nullptr : &*found;
}

void ParamUnit::set_write_listener(const void* owner, std::function<void(int index)> listener) {
  listener_owner_ = owner;
  write_listener_ = std::move(listener);
}

void ParamUnit::drop_write_listener(const void* owner) {
  if (listener_owner_ == owner) set_write_listener(nullptr, nullptr);
}

at::Tensor ParamUnit::slot(int index) const {
  return flat::slice(flat_, layout_.offset(index), layout_.numel(index));
}

void ParamUnit::show_full() {
  for (int i = 0; i < size(); ++i) {
    if (const at::Tensor tensor = param(i); tensor.defined()) tensor.set_data(full_[i]);
  }
}

void ParamUnit::point_at_full() {
  show_full();
  gathered_ = true;
}

void ParamUnit::point_at_nothing() {
  for (int i = 0; i < size(); ++i) {
    if (const at::Tensor tensor = param(i); tensor.defined()) tensor.set_data(empty_);
  }
  gathered_ = false;
}

void ParamUnit::show_shapes() {
  if (!gathered_) show_full();
}

void ParamUnit::hide_shapes() {
  if (!gathered_) point_at_nothing();
}

void ParamUnit::prefetch() {
  if (!sharded() || mapped_ || gathered_ || prefetched_) return;
  if (in_file()) {
    prefetched_ = stored_.start_load();
    return;
  }
  flat::resize_storage(flat_, layout_.total_numel() * flat_.element_size());
  pending_ = second_shard_valid_ ? plan_.node.all_gather(second_shard_, flat_, name_)
                                 : plan_.params.all_gather(shard_, flat_, name_);
  prefetched_ = true;
}

void ParamUnit::gather() {
  if (!gathered_) {
    if (in_file()) {
      gather_from_file();
    } else {
      prefetch();
      if (prefetched_) pending_.wait();
    }
    prefetched_ = false;
    point_at_full();
  }
  ++gather_count_;  // a gather that failed needs no release()
}

void ParamUnit::gather_from_file() {
  stored_.load();
  if (alone_in_file()) return;
  flat::resize_storage(flat_, layout_.total_numel() * flat_.element_size());
  pending_ = plan_.params.all_gather(shard_, flat_, name_);
  pending_.wait();
  pending_.wait_released();  // others have read the shard
  pending_ = Pending();
  stored_.drop();
}

void ParamUnit::release() {
  if (gather_count_ == 0 || --gather_count_ > 0) return;
  release_all();
}

void ParamUnit::stay() {
  DS_CHECK(can_stay(), "unit {} is to stay in memory, but is not there whole", name_);
  if (stays_) return;
  stored_.stay_loaded();
  hold();
  stays_ = true;
}

void ParamUnit::end_stay() {
  if (!stays_) return;
  stays_ = false;
  unhold();
}

void ParamUnit::hold() {
  ++held_;
  gather();
}

void ParamUnit::unhold() {
  if (held_ == 0) return;
  --held_;
  release();
}

/// Bytes gathered ahead belong to the weights of their time.
void ParamUnit::drop_prefetch() {
  if (!prefetched_) return;
  prefetched_ = false;
  if (in_file()) {
    stored_.drop();
    return;
  }
  pending_.wait_released();
  pending_ = Pending();
  flat::resize_storage(flat_, 0);
}

void ParamUnit::release_all() {
  gather_count_ = held_;
  if (held_ > 0) return;
  drop_prefetch();
  if (!sharded() || !gathered_) return;
  point_at_nothing();
  if (mapped_) return;
  if (alone_in_file()) {
    stored_.drop();
    return;
  }
  keep_second_shard();
  pending_.wait_released();
  pending_ = Pending();
  flat::resize_storage(flat_, 0);
}

void ParamUnit::keep_second_shard() {
  if (plan_.node.is_self() || second_shard_valid_) return;
  const c10::NoGradGuard no_grad;
  const int64_t numel = layout_.total_numel() / plan_.node.size();
  if (!second_shard_.defined()) second_shard_ = plan_.node.allocate(numel, dtype_, device());
  flat::copy(flat::slice(flat_, plan_.node.rank() * numel, numel), second_shard_);
  second_shard_valid_ = true;
}

Pending ParamUnit::publish() {
  drop_prefetch();
  second_shard_valid_ = false;
  if (sharded()) {
    if (mapped_ || !gathered_ || alone_in_file()) return {};
    pending_ = Pending();
    if (!in_file()) return plan_.params.all_gather(shard_, flat_, name_);
    stored_.load();
    plan_.params.all_gather(shard_, flat_, name_).wait_released();
    stored_.drop();
    return {};
  }
  return plan_.optimizer.all_gather(shard_, flat_, name_);
}

at::Tensor ParamUnit::read_full(int index) {
  const c10::NoGradGuard no_grad;
  const bool temporary = sharded() && !mapped_;
  if (temporary) gather();
  at::Tensor result = full_[index].clone();
  if (temporary) release();
  return result;
}

void ParamUnit::write_full(int index, const at::Tensor& value, int root) {
  DS_CHECK(value.numel() == layout_.numel(index),
           "parameter {} has {} elements, the value to store has {}: pass a tensor of shape [{}]", params_[index].name,
           layout_.numel(index), value.numel(), fmt::join(shapes_[index], ", "));
  const c10::NoGradGuard no_grad;
  at::Tensor values = flat::plain(value, dtype_, device()).view({-1});
  if (root >= 0 && !plan_.data.is_self()) {
    values = values.clone();  // the caller's tensor stays as it is
    plan_.data.broadcast(values, root, params_[index].name).wait_released();
  }
  drop_prefetch();
  second_shard_valid_ = false;
  if (mapped_) plan_.params.barrier(params_[index].name);
  if (!sharded() || (gathered_ && !mapped_)) flat::copy(values, slot(index));
  if (const ShardLayout::Piece* piece = piece_of(index)) {
    visit();
    flat::copy(flat::slice(values, piece->tensor_offset, piece->length),
               shard_part(piece->shard_offset, piece->length));
    end_visit(/*changed=*/true);
  }
  if (write_listener_) write_listener_(index);
  if (mapped_) plan_.params.barrier(params_[index].name);
}

void ParamUnit::store_gathered() {
  DS_CHECK(writable_in_place(), "unit {} cannot be written where it is", name_);
  const c10::NoGradGuard no_grad;
  if (in_file()) stored_.start_store();
  if (in_file() && gather_count_ > 1)
    stored_.load();  // somebody else needs the values; otherwise release() is all that may follow
  if (!write_listener_) return;
  for (int i = 0; i < layout_.tensors(); ++i) write_listener_(i);
}

bool ParamUnit::check_in_place() {
  bool taken_over = false;
  for (int i = 0; i < size(); ++i) {
    const at::Tensor tensor = param(i);
    if (!tensor.defined() || (sharded() && !gathered_)) continue;
    if (tensor.const_data_ptr() == full_[i].const_data_ptr() && tensor.numel() == full_[i].numel()) continue;
    DS_CHECK(
        tensor.sizes().vec() == shapes_[i],
        "parameter {} has shape [{}] but had [{}] when the engine was built; do not resize or replace parameters of a "
        "running engine (build a new one after changing the model)",
        params_[i].name, fmt::join(tensor.sizes(), ", "), fmt::join(shapes_[i], ", "));
    if (sharded()) continue;
    const c10::NoGradGuard no_grad;
    flat::copy(flat::plain(tensor, tensor.scalar_type(), device()), slot(i));
    tensor.set_data(full_[i]);
    taken_over = true;
  }
  return taken_over;
}

}  // namespace deepscale
