#include "zero/sharded_optimizer.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "kernels/cpu/spans.h"
#include "zero/flat_ops.h"

namespace deepscale {
namespace {

double squares_of(const at::Tensor& tensor) {
  const int64_t blocks = (tensor.numel() + kernels::kNormBlock - 1) / kernels::kNormBlock;
  const at::Tensor partials = at::empty({blocks}, tensor.options().dtype(at::kDouble));
  flat::sum_of_squares(tensor, partials);
  const at::Tensor on_host = partials.cpu();
  const auto* values = on_host.const_data_ptr<double>();
  return std::accumulate(values, values + blocks, 0.0);
}

}  // namespace

ShardedOptimizer::ShardedOptimizer(std::vector<ParamUnit*> units, std::vector<std::vector<Role>> roles,
                                   NativeOptimizerOptions options, Placement placement)
    : options_(options) {
  int64_t total = 0;
  for (const ParamUnit* unit : units) total += unit->layout().total_numel();
  int64_t placed = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    UnitState state;
    state.unit = units[u];
    placed += units[u]->layout().total_numel();
    const bool within_share = static_cast<double>(placed) <= placement.share * static_cast<double>(total);
    state.placement = within_share ? placement.device : units[u]->device();
    state.roles = std::move(roles[u]);
    for (const Role& role : state.roles) last_group_ = std::max(last_group_, role.group);
    if (options_.kind != OptimizerKind::kNone) {
      build_runs(state);
      allocate(state);
    }
    units_.push_back(std::move(state));
    for (int i = 0; i < units[u]->layout().tensors(); ++i) refresh_master(static_cast<int>(u), i);
  }
}

void ShardedOptimizer::build_runs(UnitState& state) const {
  int64_t compact = 0;
  bool open = false;
  for (const auto& piece : state.unit->pieces()) {
    const int group = state.roles[piece.tensor].group;
    if (group < 0) {
      open = false;
      continue;
    }
    const int64_t end = piece.shard_offset + piece.length;
    if (open && state.runs.back().group == group) {
      Run& run = state.runs.back();
      compact += end - (run.shard_begin + run.length);
      run.length = end - run.shard_begin;
    } else {
      Run run;
      run.shard_begin = piece.shard_offset;
      run.length = piece.length;
      run.group = group;
      // Runs keep the alignment that their elements have in the shard.
      run.compact_begin = (compact + ShardLayout::kAlignment - 1) / ShardLayout::kAlignment * ShardLayout::kAlignment;
      compact = run.compact_begin + piece.length;
      state.runs.push_back(run);
      open = true;
    }
  }
}

void ShardedOptimizer::allocate(UnitState& state) const {
  if (state.runs.empty()) return;
  const int64_t compact = state.runs.back().compact_begin + state.runs.back().length;
  const Communicator own = Communicator::self();
  const bool shard_is_master = state.unit->dtype() == options_.master_dtype && state.unit->device() == state.placement;
  if (!shard_is_master) state.master = own.allocate(compact, options_.master_dtype, state.placement);
  for (size_t k = 0; k < options_.state_names().size(); ++k) {
    state.states.push_back(own.allocate(compact, options_.state_dtype, state.placement));
  }
  for (Run& run : state.runs) {
    const at::Tensor shard = flat::slice(state.unit->shard(), run.shard_begin, run.length);
    run.tensors.master = shard_is_master ? shard : flat::slice(state.master, run.compact_begin, run.length);
    if (!shard_is_master && state.unit->device() == state.placement) run.tensors.copy_out = shard;
    run.tensors.fresh = true;
    for (const auto& full : state.states) {
      run.tensors.states.push_back(flat::slice(full, run.compact_begin, run.length));
    }
  }
}

void ShardedOptimizer::check_hyper(const std::vector<GroupHyper>& hyper) const {
  DS_CHECK(last_group_ < static_cast<int>(hyper.size()),
           "parameters are in {} optimizer groups, but hyper-parameters came for {}: give one set per group",
           last_group_ + 1, hyper.size());
  if (options_.kind != OptimizerKind::kSgd || options_.momentum) return;
  for (const GroupHyper& group : hyper) {
    const double momentum = hyper_value(group, "momentum", 0.0);
    DS_CHECK_AS(
        ConfigError, momentum == 0,
        "SGD's momentum became {}, but it was 0 in all groups when the engine was built: start with momentum, or "
        "build a new engine",
        momentum);
  }
}

void ShardedOptimizer::step_unit(int unit, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper,
                                 int64_t step, double grad_scale) {
  UnitState& state = units_[unit];
  const at::Tensor placed = gradient.device() == state.placement ? gradient : gradient.to(state.placement);
  if (options_.kind == OptimizerKind::kLamb) {
    step_lamb(state, placed, hyper, step, grad_scale);
  } else if (options_.kind == OptimizerKind::kMuon) {
    step_muon(state, placed, hyper, step, grad_scale);
  } else {
    for (Run& run : state.runs) {
      run.tensors.grad = flat::slice(placed, run.shard_begin, run.length);
      update_run(options_, hyper.at(run.group), step, grad_scale, run.tensors);
      run.tensors.grad = at::Tensor();
      // A buffer that this step did not use has yet to start.
      run.tensors.fresh = run.tensors.fresh && hyper_value(hyper.at(run.group), "momentum", 0.0) == 0;
    }
  }
  if (state.unit->device() != state.placement) store_shard(unit);
}

int64_t ShardedOptimizer::compact_offset(const UnitState& state, int64_t shard_offset) const {
  for (const Run& run : state.runs) {
    if (shard_offset >= run.shard_begin && shard_offset < run.shard_begin + run.length) {
      return run.compact_begin + shard_offset - run.shard_begin;
    }
  }
  return -1;
}

UpdateRun ShardedOptimizer::piece_run(const UnitState& state, const ShardLayout::Piece& piece,
                                      const at::Tensor& gradient) const {
  const int64_t compact = compact_offset(state, piece.shard_offset);
  const at::Tensor shard = flat::slice(state.unit->shard(), piece.shard_offset, piece.length);
  UpdateRun run;
  run.master = state.master.defined() ? flat::slice(state.master, compact, piece.length) : shard;
  if (state.master.defined() && state.unit->device() == state.placement) run.copy_out = shard;
  for (const auto& full : state.states) run.states.push_back(flat::slice(full, compact, piece.length));
  if (gradient.defined()) run.grad = flat::slice(gradient, piece.shard_offset, piece.length);
  return run;
}

void ShardedOptimizer::step_lamb(UnitState& state, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper,
                                 int64_t step, double grad_scale) const {
  const int tensors = state.unit->layout().tensors();
  // Two sums of squares a tensor: parameter and update. Added over ranks, then every rank knows the trust ratios.
  const at::Tensor sums = at::zeros({2 * tensors}, at::kDouble);
  auto* values = sums.mutable_data_ptr<double>();
  std::vector<std::pair<const ShardLayout::Piece*, at::Tensor>> updates;
  for (const auto& piece : state.unit->pieces()) {
    if (state.roles[piece.tensor].group < 0) continue;
    const UpdateRun run = piece_run(state, piece, gradient);
    at::Tensor update = lamb_raw_update(options_, hyper.at(state.roles[piece.tensor].group), grad_scale, run);
    values[2 * piece.tensor] += squares_of(run.master);
    values[2 * piece.tensor + 1] += squares_of(update);
    updates.emplace_back(&piece, std::move(update));
  }
  const Communicator& group = state.unit->plan().optimizer;
  // Where the parameters are, because a process group may serve that device only.
  const at::Tensor travelling = group.allocate(2 * tensors, at::kDouble, state.unit->device());
  travelling.copy_(sums);
  group.all_reduce(travelling, ReduceOp::kSum, state.unit->name()).wait_released();
  sums.copy_(travelling);
  for (const auto& [piece, update] : updates) {
    const GroupHyper& settings = hyper.at(state.roles[piece->tensor].group);
    const double weight = std::sqrt(values[2 * piece->tensor]);
    const double change = std::sqrt(values[2 * piece->tensor + 1]);
    const double trust =
        weight == 0 || change == 0 ? 1.0 : std::clamp(weight / change, options_.min_coeff, options_.max_coeff);
    double size = hyper_value(settings, "lr", 1e-3);
    if (options_.bias_correction) {
      size *= std::sqrt(1.0 - std::pow(hyper_value(settings, "beta2", 0.999), static_cast<double>(step))) /
              (1.0 - std::pow(hyper_value(settings, "beta1", 0.9), static_cast<double>(step)));
    }
    lamb_apply_update(size * trust, update, piece_run(state, *piece, gradient));
  }
}

void ShardedOptimizer::step_muon(UnitState& state, const at::Tensor& gradient, const std::vector<GroupHyper>& hyper,
                                 int64_t step, double grad_scale) const {
  NativeOptimizerOptions adam = options_;
  adam.kind = OptimizerKind::kAdam;
  for (int i = 0; i < state.unit->layout().tensors(); ++i) {
    if (state.roles[i].group < 0) continue;
    const GroupHyper& group = hyper.at(state.roles[i].group);
    const ShardLayout::Piece* piece = state.unit->piece_of(i);
    UpdateRun run;
    if (piece != nullptr) run = piece_run(state, *piece, gradient);
    if (hyper_value(group, "use_muon", 0) == 0) {
      if (piece != nullptr) update_run(adam, group, step, grad_scale, run);
      continue;
    }
    // The whole direction is needed on every rank: orthogonalisation mixes all of a matrix's elements.
    const auto& shape = state.unit->shape(i);
    const at::Tensor own =
        piece != nullptr ? muon_direction(group, grad_scale, run) : at::empty({0}, at::device(state.placement));
    const at::Tensor full =
        assemble(state.unit->plan().optimizer, own.to(state.unit->device()),
                 piece != nullptr ? piece->tensor_offset : 0, state.unit->layout().numel(i), state.unit->name())
            .to(state.placement);
    const at::Tensor update = orthogonalize(full.view({shape[0], -1})).reshape({-1});
    if (piece == nullptr) continue;
    const double lr = hyper_value(group, "lr", 1e-3);
    run.master.mul_(1.0 - lr * hyper_value(group, "weight_decay", 0.0))
        .add_(flat::slice(update, piece->tensor_offset, piece->length), -lr);
    if (run.copy_out.defined()) flat::copy(run.master, run.copy_out);
  }
}

std::vector<Fragment> ShardedOptimizer::fragments() {
  std::vector<Fragment> result;
  for (const auto& state : units_) {
    for (const auto& piece : state.unit->pieces()) {
      const Role& role = state.roles[piece.tensor];
      if (role.group < 0 || options_.kind == OptimizerKind::kNone) continue;
      Fragment fragment{role.model_index, role.group, piece.tensor_offset, piece.length, {}, {}};
      fragment.master = piece_run(state, piece, at::Tensor()).master;
      if (state.external_grad.defined()) {
        fragment.grad = flat::slice(state.external_grad, compact_offset(state, piece.shard_offset), piece.length);
      }
      if (piece.length == state.unit->layout().numel(piece.tensor)) {
        fragment.master = fragment.master.view(state.unit->shape(piece.tensor));
        if (fragment.grad.defined()) fragment.grad = fragment.grad.view(state.unit->shape(piece.tensor));
      }
      result.push_back(std::move(fragment));
    }
  }
  std::sort(result.begin(), result.end(),
            [](const Fragment& a, const Fragment& b) { return a.model_index < b.model_index; });
  return result;
}

void ShardedOptimizer::prepare_external(int unit, const at::Tensor& gradient, double grad_scale) {
  UnitState& state = units_[unit];
  if (state.runs.empty()) return;
  const int64_t compact = state.runs.back().compact_begin + state.runs.back().length;
  if (!state.external_grad.defined()) {
    state.external_grad = Communicator::self().allocate(compact, options_.master_dtype, state.placement);
  }
  for (const Run& run : state.runs) {
    flat::copy(flat::slice(gradient, run.shard_begin, run.length),
               flat::slice(state.external_grad, run.compact_begin, run.length), grad_scale);
  }
}

void ShardedOptimizer::finish_external(int unit) {
  units_[unit].external_grad = at::Tensor();
  store_shard(unit);
}

void ShardedOptimizer::reset_states() {
  for (auto& state : units_) {
    for (auto& tensor : state.states) tensor.zero_();
    for (Run& run : state.runs) run.tensors.fresh = true;
  }
}

void ShardedOptimizer::note_written_states(int unit) {
  for (Run& run : units_[unit].runs) run.tensors.fresh = false;
}

size_t ShardedOptimizer::state_index(const std::string& key) const {
  const auto names = options_.state_names();
  const auto found = std::find(names.begin(), names.end(), key);
  DS_CHECK(found != names.end(), "the optimizer has no state \"{}\"; it has: fp32, grad{}{}", key,
           names.empty() ? "" : ", ", fmt::join(names, ", "));
  return static_cast<size_t>(found - names.begin());
}

at::Tensor ShardedOptimizer::local(int unit, int index, const std::string& key) {
  UnitState& state = units_[unit];
  const ShardLayout::Piece* piece = state.unit->piece_of(index);
  if (piece == nullptr || state.roles[index].group < 0 || options_.kind == OptimizerKind::kNone) return {};
  const UpdateRun run = piece_run(state, *piece, at::Tensor());
  if (key == "fp32") return run.master;
  return run.states[state_index(key)];
}

void ShardedOptimizer::store_shard(int unit) {
  UnitState& state = units_[unit];
  if (!state.master.defined()) return;
  for (const Run& run : state.runs) {
    flat::copy(run.tensors.master, flat::slice(state.unit->shard(), run.shard_begin, run.length));
  }
}

void ShardedOptimizer::refresh_master(int unit, int index) {
  UnitState& state = units_[unit];
  if (!state.master.defined()) return;
  const ShardLayout::Piece* piece = state.unit->piece_of(index);
  if (piece == nullptr || state.roles[index].group < 0) return;
  const UpdateRun run = piece_run(state, *piece, at::Tensor());
  flat::copy(flat::slice(state.unit->shard(), piece->shard_offset, piece->length), run.master);
}

int64_t ShardedOptimizer::master_bytes() const {
  int64_t bytes = 0;
  for (const auto& state : units_) bytes += state.master.defined() ? static_cast<int64_t>(state.master.nbytes()) : 0;
  return bytes;
}

int64_t ShardedOptimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& state : units_) {
    for (const auto& tensor : state.states) bytes += static_cast<int64_t>(tensor.nbytes());
  }
  return bytes;
}

at::Tensor assemble(const Communicator& group, const at::Tensor& piece, int64_t offset, int64_t numel,
                    const std::string& tag) {
  const c10::NoGradGuard no_grad;
  const at::Device device = piece.defined() ? piece.device() : at::Device(at::kCPU);
  at::Tensor full = group.allocate(numel, at::kFloat, device);
  if (piece.defined() && piece.numel() > 0) flat::copy(piece, flat::slice(full, offset, piece.numel()));
  if (!group.is_self()) group.all_reduce(full.view(at::kInt), ReduceOp::kSum, tag).wait_released();
  return full;
}

}  // namespace deepscale
