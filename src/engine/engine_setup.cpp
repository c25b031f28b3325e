// Building an engine: units, buckets, roles, hooks.
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/utils/lambda_post_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "base/error.h"
#include "comm/host_values.h"
#include "engine/engine.h"
#include "engine/engine_hook.h"
#include "engine/engine_options.h"
#include "engine/plan_sizes.h"
#include "platform/private_memory.h"
#include "zero/flat_ops.h"

namespace deepscale {

Engine::Engine(EngineOptions options, std::vector<EngineParam> params)
    : options_(std::move(options)),
      log_(options_.groups.data.rank()),
      params_(std::move(params)),
      scaler_(options_.loss_scale),
      grad_norm_(std::numeric_limits<double>::quiet_NaN()) {
  const c10::NoGradGuard no_grad;
  places_.resize(params_.size());
  check_shared_settings();
  check_params();
  collect_units();
  make_buckets();
  if (options_.param_file) move_parameters_to_file();
  order_units();
  broadcast_loose_parameters();
  build_parts();
  install_hooks();
  trim_heap();  // the model's first copy is gone
}

Engine::~Engine() {
  try {
    destroy();
  } catch (const std::exception& error) {  // a group that failed while something was gathered ahead
    log_.warning("{}", error.what());
  }
}

void Engine::check_shared_settings() const {
  if (params_.empty() || options_.shared_settings.empty()) return;
  std::vector<int64_t> own;
  for (const auto& setting : options_.shared_settings) own.push_back(static_cast<int64_t>(setting.fingerprint >> 1));
  const auto of_rank_0 =
      broadcast_values(options_.groups.data, params_.front().tensor.device(), own, 0, "configuration of rank 0");
  std::vector<int64_t> differs(own.size());
  for (size_t i = 0; i < own.size(); ++i) differs[i] = own[i] == of_rank_0[i] ? -1 : options_.groups.data.rank();
  differs = all_reduce_values(options_.groups.data, params_.front().tensor.device(), std::move(differs), ReduceOp::kMax,
                              "differences of configurations");
  for (size_t i = 0; i < differs.size(); ++i) {
    DS_CHECK_AS(ConfigError, differs[i] < 0,
                "\"{}\" in the configuration of rank {} is not that of rank 0: give all ranks the same configuration",
                options_.shared_settings[i].name, differs[i]);
  }
}

void Engine::check_params() {
  for (const auto& param : params_) {
    DS_CHECK_AS(
        ConfigError, param.group < 0 || param.tensor.scalar_type() != at::kDouble,
        "parameter {} has dtype float64, and parameters train in float32, bfloat16 or float16: convert the model "
        "with model.float() first, or freeze the parameter",
        param.name);
  }
}

void Engine::collect_units() {
  for (size_t p = 0; p < params_.size(); ++p) {
    if (params_[p].unit == nullptr) continue;
    const auto known = std::find(units_.begin(), units_.end(), params_[p].unit);
    if (known == units_.end()) add_unit(params_[p].unit, static_cast<int>(p));
  }
}

void Engine::add_unit(std::shared_ptr<ParamUnit> unit, int model_position) {
  units_.push_back(std::move(unit));
  unit_positions_.push_back(model_position);
}

void Engine::make_buckets() {
  const int64_t limit = bucket_limit_numel(options_.bucket_numel);
  std::vector<NamedParam> bucket;
  int64_t numel = 0;
  int position = 0;
  const auto close = [&] {
    if (bucket.empty()) return;
    const std::string name =
        bucket.size() == 1 ? bucket.front().name : fmt::format("{} .. {}", bucket.back().name, bucket.front().name);
    const at::ScalarType dtype = bucket.front().tensor.scalar_type();
    add_unit(std::make_shared<ParamUnit>(name, std::move(bucket), options_.plan, dtype), position);
    bucket.clear();
    numel = 0;
  };
  for (int p = static_cast<int>(params_.size()) - 1; p >= 0; --p) {
    const EngineParam& param = params_[p];
    if (param.unit != nullptr || param.group < 0 || param.tensor.numel() == 0) continue;
    const bool fits = bucket.empty() || (numel + param.tensor.numel() <= limit &&
                                         bucket.front().tensor.scalar_type() == param.tensor.scalar_type() &&
                                         bucket.front().tensor.device() == param.tensor.device());
    if (!fits) close();
    position = p;
    bucket.push_back({param.name, param.tensor});
    numel += param.tensor.numel();
  }
  close();
}

void Engine::order_units() {
  std::vector<size_t> order(units_.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return unit_positions_[a] > unit_positions_[b]; });
  std::vector<std::shared_ptr<ParamUnit>> sorted;
  for (const size_t u : order) sorted.push_back(units_[u]);
  units_ = std::move(sorted);
  std::map<const at::TensorImpl*, int> model_index;
  for (size_t p = 0; p < params_.size(); ++p) {
    const bool fresh = model_index.emplace(params_[p].tensor.unsafeGetTensorImpl(), static_cast<int>(p)).second;
    DS_CHECK_AS(ConfigError, fresh, "parameter {} is listed twice; list tied parameters once", params_[p].name);
  }
  for (size_t u = 0; u < units_.size(); ++u) {
    std::vector<ShardedOptimizer::Role> roles;
    UnitUse use;
    for (int i = 0; i < units_[u]->size(); ++i) {
      const auto found = model_index.find(units_[u]->param(i).unsafeGetTensorImpl());
      const int p = found == model_index.end() ? -1 : found->second;
      if (p >= 0) places_[p] = {static_cast<int>(u), i};
      const int group = p >= 0 ? params_[p].group : -1;
      roles.push_back({group >= 0 ? p : -1, group});
      use.trainable += group >= 0 ? 1 : 0;
      use.has_frozen = use.has_frozen || group < 0;
    }
    roles_.push_back(std::move(roles));
    uses_.push_back(use);
    schedules_ = schedules_ || units_[u]->gather_cost_numel() > 0;
  }
}

void Engine::broadcast_loose_parameters() {
  for (size_t p = 0; p < params_.size(); ++p) {
    if (places_[p].unit >= 0 || params_[p].tensor.numel() == 0 || options_.groups.data.is_self()) continue;
    at::Tensor values = flat::plain(params_[p].tensor, params_[p].tensor.scalar_type(), params_[p].tensor.device());
    options_.groups.data.broadcast(values, 0, params_[p].name).wait_released();
    params_[p].tensor.set_data(values);
  }
}

std::vector<ParamUnit*> Engine::unit_pointers() const {
  std::vector<ParamUnit*> pointers;
  for (const auto& unit : units_) pointers.push_back(unit.get());
  return pointers;
}

std::vector<FileTier> Engine::tiers_of_units() const {
  std::vector<FileTier> tiers;
  for (const auto& unit : units_) {
    if (!unit->in_file()) continue;
    const FileTier tier = unit->tier();
    if (std::find(tiers.begin(), tiers.end(), tier) == tiers.end()) tiers.push_back(tier);
  }
  return tiers;
}

/// The pools of `tiers` tiers for parameters.
int64_t Engine::pool_bytes_of_params(int64_t tiers) const {
  int64_t largest = 0;
  for (const auto& unit : units_) {
    if (unit->sharded())
      largest = std::max(largest, unit->layout().shard_numel() * static_cast<int64_t>(c10::elementSize(unit->dtype())));
  }
  return param_pool_bytes(options_.param_file->pool_bytes / tiers, largest);
}

void Engine::move_parameters_to_file() {
  // What a rank found free decides which units go, and so which collectives there are: the least of all counts.
  const int64_t allowed = -all_reduce_values(options_.groups.data, params_.front().tensor.device(),
                                             {-options_.param_resident_numel}, ReduceOp::kMax, "resident parameters")
                               .front();
  int64_t resident = 0;
  for (const auto& unit : units_) {
    if (!unit->sharded()) continue;
    resident += unit->layout().total_numel();
    if (resident <= allowed || unit->in_file()) continue;
    if (!param_tier_) {
      FileTierOptions options = *options_.param_file;
      options.pool_bytes = pool_bytes_of_params(/*tiers=*/1);
      if (options_.groups.data.rank() == 0 && !options_.optimizer_file) options.log = log_;  // it is said once
      param_tier_ = std::make_unique<FileTier>(open_tier(options, "offload_param"));
    }
    unit->move_to_file(*param_tier_);
  }
  // Units may have been made in files before this engine, with a pool for whatever was to come.
  std::vector<FileTier> tiers = tiers_of_units();
  for (FileTier& tier : tiers) tier.set_pool_bytes(pool_bytes_of_params(std::ssize(tiers)));
}

void Engine::make_file_tier() {
  const NativeOptimizerOptions& optimizer = options_.optimizer;
  const auto bytes_per_element =
      static_cast<int64_t>(c10::elementSize(optimizer.master_dtype) +
                           optimizer.state_names().size() * c10::elementSize(optimizer.state_dtype));
  int64_t largest = 0;
  int64_t largest_gradient_bytes = 0;
  for (const auto& unit : units_) {
    const int64_t numel = unit->layout().shard_numel();
    largest = std::max(largest, numel);
    if (!unit->plan().shards_grads) continue;
    const at::ScalarType dtype = options_.reduction.accumulation_dtype.value_or(unit->dtype());
    largest_gradient_bytes = std::max(largest_gradient_bytes, numel * static_cast<int64_t>(c10::elementSize(dtype)));
  }
  FileTierOptions options = *options_.optimizer_file;
  options.pool_bytes = state_pool_bytes(options.pool_bytes, std::min(largest, options_.optimizer_block_numel),
                                        bytes_per_element, largest_gradient_bytes);
  if (options_.groups.data.rank() == 0) options.log = log_;
  file_tier_ = std::make_unique<FileTier>(open_tier(options, "offload_optimizer"));
}

void Engine::make_orders(const std::vector<int64_t>& numels) {
  ParamScheduler::Options training = options_.schedule;
  const auto in_file = [](const auto& unit) { return unit->in_file(); };
  // A drive is busy only while a read is waiting behind the one that is waited for.
  if (std::any_of(units_.begin(), units_.end(), in_file)) training.min_ahead = 2;
  ParamScheduler::Options forward = training;
  forward.announced = false;
  forward.cyclic = options_.optimizer.kind == OptimizerKind::kNone;
  training_order_ = std::make_unique<ParamScheduler>(numels, training);
  forward_order_ = std::make_unique<ParamScheduler>(numels, forward);
  if (!options_.param_resident_adapts || !forward.cyclic) return;
  // units_ stands in the order of backward; forward uses them from its end, which spreads as well.
  std::vector<int64_t> bytes;
  for (const auto& unit : units_) {
    const bool may_stay = unit->in_file() && unit->plan().params.is_self();
    bytes.push_back(may_stay ? unit->layout().total_numel() * static_cast<int64_t>(c10::elementSize(unit->dtype()))
                             : 0);
  }
  residency_ = std::make_unique<Residency>(std::move(bytes));
}

void Engine::build_parts() {
  std::vector<std::vector<bool>> trainable;
  std::vector<std::vector<int>> model_index;
  std::vector<int64_t> numels;
  for (size_t u = 0; u < units_.size(); ++u) {
    trainable.emplace_back();
    model_index.emplace_back();
    for (const auto& role : roles_[u]) {
      trainable.back().push_back(role.group >= 0);
      model_index.back().push_back(role.model_index);
    }
    numels.push_back(units_[u]->gather_cost_numel());
  }
  if (options_.optimizer_file) make_file_tier();
  options_.reduction.file = file_tier_.get();
  reducer_ = std::make_unique<GradReducer>(unit_pointers(), std::move(trainable), options_.reduction);
  reducer_->set_shard_listener([this](int unit, const at::Tensor& shard) { norm_->add_unit(unit, shard); });
  norm_ = std::make_unique<GradNorm>(unit_pointers(), std::move(model_index));
  make_orders(numels);
  at::Device device = at::kCPU;
  for (const auto& unit : units_) device = unit->device();
  ShardedOptimizer::Placement placement;
  placement.device = options_.optimizer_placement.value_or(device);
  placement.share = options_.optimizer_placed_share;
  if (options_.optimizer_file) {
    placement.file = file_tier_.get();
    placement.block_numel = options_.optimizer_block_numel;
  }
  optimizer_ = std::make_unique<ShardedOptimizer>(unit_pointers(), roles_, options_.optimizer, placement);
  for (size_t u = 0; u < units_.size(); ++u) {
    units_[u]->set_write_listener(this,
                                  [this, u](int index) { optimizer_->refresh_master(static_cast<int>(u), index); });
  }
}

void Engine::install_hooks() {
  if (options_.optimizer.kind == OptimizerKind::kNone) return;
  for (size_t u = 0; u < units_.size(); ++u) {
    units_[u]->show_shapes();
    for (size_t i = 0; i < roles_[u].size(); ++i) {
      const at::Tensor tensor = units_[u]->param(static_cast<int>(i));
      if (!tensor.defined() || roles_[u][i].group < 0 || !tensor.requires_grad()) continue;
      Hook hook;
      hook.accumulator = torch::autograd::impl::grad_accumulator(tensor);
      const int unit = static_cast<int>(u);
      const int index = static_cast<int>(i);
      hook.key = hook.accumulator->add_post_hook(std::make_unique<torch::autograd::utils::LambdaPostHook>(
          [this, unit, index](const torch::autograd::variable_list& outputs, const torch::autograd::variable_list&) {
            on_gradient(unit, index);
            return outputs;
          }));
      hooks_.push_back(std::move(hook));
    }
    units_[u]->hide_shapes();
  }
}

void Engine::destroy() {
  alive_.reset();
  for (auto& hook : hooks_) hook.accumulator->del_post_hook(hook.key);
  hooks_.clear();
  for (auto& unit : units_) {
    unit->drop_write_listener(this);
    unit->end_stay();
    unit->release_all();
  }
}

}  // namespace deepscale
