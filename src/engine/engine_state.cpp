// Reading and writing the engine's state by parameter: full values (collective) and this rank's pieces.
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "base/error.h"
#include "engine/engine.h"
#include "zero/flat_ops.h"

namespace deepscale {
namespace {

constexpr char kLoadOfWeights[] = "loading of weights was cut off";

}  // namespace

Engine::PieceRange Engine::fragment_of(int index) const {
  const Place& place = places_.at(index);
  if (place.unit < 0) return {};
  const ShardLayout::Piece* piece = units_[place.unit]->piece_of(place.index);
  return piece == nullptr ? PieceRange{} : PieceRange{piece->tensor_offset, piece->length};
}

at::Tensor Engine::local_tensor(int index, const std::string& key) {
  const Place& place = places_.at(index);
  if (place.unit < 0 || params_[index].group < 0) return {};
  if (key != "grad") return optimizer_->read_local(place.unit, place.index, key);
  const ShardLayout::Piece* piece = units_[place.unit]->piece_of(place.index);
  if (piece == nullptr) return {};
  return flat::slice(reducer_->settled(place.unit), piece->shard_offset, piece->length);
}

std::optional<at::Tensor> Engine::read_local(int index, const std::string& key) {
  const c10::NoGradGuard no_grad;
  if (key == "grad") {
    if (!reducer_->has_gradients()) return std::nullopt;
    settle();
  }
  const at::Tensor local = local_tensor(index, key);
  if (!local.defined()) return std::nullopt;
  if (key != "grad") return local;
  at::Tensor gradient = local.to(at::kFloat).mul(1.0 / scaler_.scale());
  reducer_->release_settled(places_[index].unit);
  return gradient;
}

std::optional<at::Tensor> Engine::read_full(int index, const std::string& key) {
  const c10::NoGradGuard no_grad;
  const Place& place = places_.at(index);
  // Decided before anything moves, so that all ranks decide alike.
  if (key != "fp32" && key != "grad") (void)optimizer_->state_index(key);
  if (place.unit < 0 || params_[index].group < 0 || optimizer_->options().kind == OptimizerKind::kNone) {
    if (key != "fp32") return std::nullopt;
    return place.unit < 0 ? params_[index].tensor.detach().to(at::kFloat, false, true)
                          : units_[place.unit]->read_full(place.index).to(at::kFloat);
  }
  if (key == "grad" && !reducer_->has_gradients()) return std::nullopt;
  const auto local = read_local(index, key);
  const ParamUnit& unit = *units_[place.unit];
  at::Tensor full = assemble(unit.plan().optimizer, local ? local->to(unit.device()) : at::empty({0}, unit.device()),
                             fragment_of(index).offset, unit.layout().numel(place.index), params_[index].name);
  return full.view(unit.shape(place.index)).clone();
}

void Engine::write_local(int index, const std::string& key, const at::Tensor& value) {
  const c10::NoGradGuard no_grad;
  if (key == "grad") settle();
  const at::Tensor local = local_tensor(index, key);
  if (!local.defined()) {
    DS_CHECK(value.numel() == 0, "this rank holds no {} of parameter {}, but {} elements were to be stored", key,
             params_[index].name, value.numel());
    return;
  }
  DS_CHECK(value.numel() == local.numel(), "{} of parameter {} has {} elements on this rank, {} were to be stored", key,
           params_[index].name, local.numel(), value.numel());
  if (key == "grad") {
    flat::copy(flat::plain(value, value.scalar_type(), local.device()), local, scaler_.scale());
    reducer_->release_settled(places_[index].unit, /*changed=*/true);
  } else {
    optimizer_->write_local(places_[index].unit, places_[index].index, key, value);
  }
}

void Engine::begin_load() {
  if (cut_off_.empty()) cut_off_ = kLoadOfWeights;
}

void Engine::reset_optimizer(bool states_follow) {
  const c10::NoGradGuard no_grad;
  cut_off_ = "loading of states was cut off";
  optimizer_->reset_states(/*zeros=*/!states_follow);
  optimizer_steps_ = 0;
}

void Engine::end_load(bool states) {
  if (states || cut_off_ == kLoadOfWeights) cut_off_.clear();
}

void Engine::write_full(int index, const std::string& key, const at::Tensor& value) {
  const c10::NoGradGuard no_grad;
  const Place& place = places_.at(index);
  if (place.unit < 0) {
    DS_CHECK(key == "fp32", "parameter {} is frozen and has no {}", params_[index].name, key);
    params_[index].tensor.detach().copy_(value.view(params_[index].tensor.sizes()));
    return;
  }
  ParamUnit& unit = *units_[place.unit];
  if (key == "fp32") unit.write_full(place.index, value, -1);
  if (params_[index].group < 0) return;
  if (key == "grad") settle();  // ranks without a piece take part, too
  const PieceRange range = fragment_of(index);
  DS_CHECK(value.numel() == unit.layout().numel(place.index), "{} of parameter {} needs {} elements, got {}", key,
           params_[index].name, unit.layout().numel(place.index), value.numel());
  if (range.length == 0) return;
  // The low-precision parameter was written above; the master keeps the value's full precision.
  write_local(index, key, flat::slice(value.detach().contiguous().view({-1}), range.offset, range.length));
}

void Engine::refresh_from_parameters() {
  const c10::NoGradGuard no_grad;
  for (size_t u = 0; u < units_.size(); ++u) {
    (void)units_[u]->check_in_place();
    optimizer_->refresh_master(static_cast<int>(u), -1);
  }
}

void Engine::refresh_parameters() {
  const c10::NoGradGuard no_grad;
  for (size_t u = 0; u < units_.size(); ++u) optimizer_->store_shard(static_cast<int>(u));
  publish();
}

Engine::Memory Engine::memory_bytes() const {
  Memory memory;
  for (const auto& unit : units_) {
    const auto bytes = static_cast<int64_t>(c10::elementSize(unit->dtype()));
    memory.parameters += bytes * (unit->sharded() ? unit->layout().shard_numel() : unit->layout().total_numel());
    memory.parameters += unit->second_shard_bytes();
  }
  memory.gradients = reducer_->gradient_bytes();
  memory.buckets = reducer_->bucket_bytes();
  memory.master = optimizer_->master_bytes();
  memory.optimizer = optimizer_->state_bytes();
  return memory;
}

Engine::FileUse Engine::file_use() const {
  FileUse use;
  if (file_tier_) use.optimizer = file_tier_->facts();
  for (const FileTier& tier : tiers_of_units()) {
    if (use.parameters) {
      *use.parameters += tier.facts();
    } else {
      use.parameters = tier.facts();
    }
  }
  return use;
}

std::string Engine::description() const {
  const Memory memory = memory_bytes();
  int64_t elements = 0;
  int64_t trainable = 0;
  for (size_t p = 0; p < params_.size(); ++p) {
    const Place& place = places_[p];
    const int64_t numel = place.unit < 0 ? params_[p].tensor.numel() : units_[place.unit]->layout().numel(place.index);
    elements += numel;
    if (params_[p].group >= 0) trainable += numel;
  }
  const ShardingPlan* plan = &options_.plan;  // of the unit that is sharded furthest
  for (const auto& unit : units_) {
    if (unit->plan().params.size() > plan->params.size()) plan = &unit->plan();
  }
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  return fmt::format(
      "parameters {} ({} trainable) in {} units over {}\n"
      "sharded over: parameters {}, gradients {}, optimizer {} ranks; replicas {}\n"
      "this rank: parameters {:.1f} MiB, master {:.1f} MiB, optimizer states {:.1f} MiB",
      elements, trainable, units_.size(), options_.groups.data.description(), plan->params.size(), plan->grads.size(),
      plan->optimizer.size(), plan->replicas.size(), mib(memory.parameters), mib(memory.master), mib(memory.optimizer));
}

}  // namespace deepscale
