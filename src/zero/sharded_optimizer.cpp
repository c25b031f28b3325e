#include "zero/sharded_optimizer.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
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
  if (placement.file != nullptr) check_file_placement();
  int64_t total = 0;
  for (const ParamUnit* unit : units) total += unit->layout().total_numel();
  int64_t placed = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    UnitState state;
    state.unit = units[u];
    placed += units[u]->layout().total_numel();
    const bool within_share = static_cast<double>(placed) <= placement.share * static_cast<double>(total);
    state.placement = within_share ? placement.device : units[u]->device();
    state.file = within_share ? placement.file : nullptr;
    state.roles = std::move(roles[u]);
    for (const Role& role : state.roles) last_group_ = std::max(last_group_, role.group);
    if (options_.kind != OptimizerKind::kNone) {
      build_runs(state, state.file != nullptr ? placement.block_numel : std::numeric_limits<int64_t>::max());
      allocate(state);
    }
    units_.push_back(std::move(state));
    refresh_master(static_cast<int>(u), -1);
  }
}

void ShardedOptimizer::check_file_placement() const {
  const char* kind = options_.kind == OptimizerKind::kLamb       ? "LAMB"
                     : options_.kind == OptimizerKind::kMuon     ? "Muon"
                     : options_.kind == OptimizerKind::kExternal ? "an optimizer that DeepScale does not compute itself"
                                                                 : nullptr;
  DS_CHECK_AS(ConfigError, kind == nullptr,
              "zero_optimization.offload_optimizer.device is \"nvme\", and {} needs whole parameters in memory: use "
              "\"cpu\", or Adam, AdamW, Lion, Adagrad or SGD",
              kind);
}

void ShardedOptimizer::build_runs(UnitState& state, int64_t block_numel) const {
  std::vector<Run> runs;
  bool open = false;
  for (const auto& piece : state.unit->pieces()) {
    const int group = state.roles[piece.tensor].group;
    if (group >= 0 && open && runs.back().group == group) {
      runs.back().length = piece.shard_offset + piece.length - runs.back().shard_begin;
    } else if (group >= 0) {
      runs.push_back({piece.shard_offset, piece.length, group, 0, {}});
    }
    open = group >= 0;
  }
  constexpr int64_t kUnit = ShardLayout::kAlignment;
  const int64_t limit = std::max(block_numel / kUnit, int64_t{1}) * kUnit;
  for (const Run& run : runs) {
    for (int64_t done = 0; done < run.length;) {
      // Runs keep the alignment that their elements have in the shard.
      int64_t begin = state.blocks.empty() ? limit : (state.blocks.back().numel() + kUnit - 1) / kUnit * kUnit;
      if (begin >= limit) {
        state.blocks.emplace_back();
        begin = 0;
      }
      const int64_t length = std::min(run.length - done, limit - begin);
      state.blocks.back().runs.push_back({run.shard_begin + done, length, run.group, begin, {}});
      done += length;
    }
  }
}

void ShardedOptimizer::allocate(UnitState& state) const {
  const Communicator own = Communicator::self();
  const bool shard_is_master = state.unit->dtype() == options_.master_dtype && state.unit->device() == state.placement;
  for (Block& block : state.blocks) {
    const auto make = [&](const std::string& what, at::ScalarType dtype) {
      if (state.file == nullptr) return own.allocate(block.numel(), dtype, state.placement);
      block.in_file.emplace_back(*state.file, block.numel(), dtype, what + " of " + state.unit->name());
      return block.in_file.back().tensor();
    };
    const auto part = [&](const at::Tensor& whole, const Run& run) {
      for (const FileTensor& file : block.in_file) {
        if (file.tensor().is_same(whole)) return file.view(run.compact_begin, run.length);
      }
      return flat::slice(whole, run.compact_begin, run.length);
    };
    if (!shard_is_master) block.master = make("the master copy", options_.master_dtype);
    for (const std::string& name : options_.state_names()) block.states.push_back(make(name, options_.state_dtype));
    for (Run& run : block.runs) {
      const at::Tensor shard = state.unit->shard_part(run.shard_begin, run.length);
      run.tensors.master = shard_is_master ? shard : part(block.master, run);
      if (!shard_is_master && state.unit->device() == state.placement) run.tensors.copy_out = shard;
      run.tensors.fresh = true;
      for (const auto& full : block.states) run.tensors.states.push_back(part(full, run));
    }
  }
}

/// False when there was no room for all of it.
bool ShardedOptimizer::Block::start_load() {
  return std::all_of(in_file.begin(), in_file.end(), [](FileTensor& tensor) { return tensor.start_load(); });
}

void ShardedOptimizer::Block::load() {
  start_load();
  for (FileTensor& tensor : in_file) tensor.load();
}

void ShardedOptimizer::Block::store() {
  for (FileTensor& tensor : in_file) tensor.start_store();
}

void ShardedOptimizer::Block::drop() {
  for (FileTensor& tensor : in_file) tensor.drop();
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

void ShardedOptimizer::begin_steps(std::function<bool(int unit)> gradient) {
  read_gradient_ = std::move(gradient);
  ahead_unit_ = ahead_block_ = 0;
  read_ahead();
}

/// What is stepped first is read first, so it never waits for memory that what comes later has taken.
void ShardedOptimizer::read_ahead() {
  if (read_gradient_ == nullptr) return;
  for (; ahead_unit_ < units_.size(); ++ahead_unit_, ahead_block_ = 0) {
    UnitState& state = units_[ahead_unit_];
    if (state.blocks.empty()) continue;
    if (ahead_block_ == 0 && !read_gradient_(static_cast<int>(ahead_unit_))) return;
    for (; ahead_block_ < state.blocks.size(); ++ahead_block_) {
      if (!state.blocks[ahead_block_].start_load()) return;
    }
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
    state.unit->visit(overwrites_shard(state));
    for (size_t b = 0; b < state.blocks.size(); ++b) {
      state.blocks[b].load();
      read_ahead();
      step_block(state, state.blocks[b], placed, hyper, step, grad_scale);
      state.blocks[b].store();
    }
    state.unit->end_visit(/*changed=*/true);
    return;
  }
  if (state.unit->device() != state.placement) store_shard(unit);
}

/// Whether a step writes every element of the shard that means something, without reading it.
bool ShardedOptimizer::overwrites_shard(const UnitState& state) {
  return std::all_of(state.roles.begin(), state.roles.end(), [](const Role& role) { return role.group >= 0; }) &&
         std::all_of(state.blocks.begin(), state.blocks.end(),
                     [](const Block& block) { return block.master.defined(); });
}

void ShardedOptimizer::step_block(UnitState& state, Block& block, const at::Tensor& gradient,
                                  const std::vector<GroupHyper>& hyper, int64_t step, double grad_scale) const {
  for (Run& run : block.runs) {
    run.tensors.grad = flat::slice(gradient, run.shard_begin, run.length);
    update_run(options_, hyper.at(run.group), step, grad_scale, run.tensors);
    run.tensors.grad = at::Tensor();
    // A buffer that this step did not use has yet to start.
    run.tensors.fresh = run.tensors.fresh && hyper_value(hyper.at(run.group), "momentum", 0.0) == 0;
    if (state.unit->device() == state.placement) continue;
    flat::copy(run.tensors.master, flat::slice(state.unit->shard(), run.shard_begin, run.length));
  }
}

std::vector<ShardedOptimizer::Stretch> ShardedOptimizer::stretches(UnitState& state, const ShardLayout::Piece& piece) {
  std::vector<Stretch> found;
  const int64_t piece_end = piece.shard_offset + piece.length;
  for (Block& block : state.blocks) {
    for (Run& run : block.runs) {
      const int64_t begin = std::max(run.shard_begin, piece.shard_offset);
      const int64_t end = std::min(run.shard_begin + run.length, piece_end);
      if (begin < end)
        found.push_back({&block, &run, begin - run.shard_begin, begin - piece.shard_offset, end - begin});
    }
  }
  return found;
}

at::Tensor ShardedOptimizer::values_of(const Stretch& stretch, const std::string& key) const {
  const UpdateRun& tensors = stretch.run->tensors;
  return flat::slice(key == "fp32" ? tensors.master : tensors.states[state_index(key)], stretch.in_run, stretch.length);
}

/// Units whose master and states are in memory: every piece lies in one run.
UpdateRun ShardedOptimizer::piece_run(UnitState& state, const ShardLayout::Piece& piece,
                                      const at::Tensor& gradient) const {
  const Stretch whole = stretches(state, piece).at(0);
  const auto part = [&](const at::Tensor& tensor) {
    return tensor.defined() ? flat::slice(tensor, whole.in_run, whole.length) : tensor;
  };
  UpdateRun run;
  run.master = part(whole.run->tensors.master);
  run.copy_out = part(whole.run->tensors.copy_out);
  for (const auto& full : whole.run->tensors.states) run.states.push_back(part(full));
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
  for (auto& state : units_) {
    for (const auto& piece : state.unit->pieces()) {
      const Role& role = state.roles[piece.tensor];
      if (role.group < 0 || options_.kind == OptimizerKind::kNone) continue;
      Fragment fragment{role.model_index, role.group, piece.tensor_offset, piece.length, {}, {}};
      fragment.master = piece_run(state, piece, at::Tensor()).master;
      const Stretch whole = stretches(state, piece).at(0);
      if (whole.block->external_grad.defined()) {
        fragment.grad = flat::slice(whole.block->external_grad, whole.run->compact_begin + whole.in_run, piece.length);
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
  for (Block& block : state.blocks) {
    if (!block.external_grad.defined()) {
      block.external_grad = Communicator::self().allocate(block.numel(), options_.master_dtype, state.placement);
    }
    for (const Run& run : block.runs) {
      flat::copy(flat::slice(gradient, run.shard_begin, run.length),
                 flat::slice(block.external_grad, run.compact_begin, run.length), grad_scale);
    }
  }
}

void ShardedOptimizer::finish_external(int unit) {
  for (Block& block : units_[unit].blocks) block.external_grad = at::Tensor();
  store_shard(unit);
}

void ShardedOptimizer::reset_states(bool zeros) {
  for (auto& state : units_) {
    for (Block& block : state.blocks) {
      if (state.file != nullptr) block.drop();  // what a step that was cut off had begun to read
      for (Run& run : block.runs) run.tensors.fresh = true;
      if (!zeros) continue;
      block.load();
      for (auto& tensor : block.states) tensor.zero_();
      block.store();
    }
  }
}

size_t ShardedOptimizer::state_index(const std::string& key) const {
  const auto names = options_.state_names();
  const auto found = std::find(names.begin(), names.end(), key);
  DS_CHECK(found != names.end(), "the optimizer has no state \"{}\"; it has: fp32, grad{}{}", key,
           names.empty() ? "" : ", ", fmt::join(names, ", "));
  return static_cast<size_t>(found - names.begin());
}

at::Tensor ShardedOptimizer::read_local(int unit, int index, const std::string& key) {
  UnitState& state = units_[unit];
  const ShardLayout::Piece* piece = state.unit->piece_of(index);
  if (piece == nullptr || state.roles[index].group < 0 || options_.kind == OptimizerKind::kNone) return {};
  const std::vector<Stretch> parts = stretches(state, *piece);
  if (key == "fp32" && !parts.at(0).block->master.defined()) {  // the shard is the master
    state.unit->visit();
    at::Tensor values = state.unit->shard_part(piece->shard_offset, piece->length);
    if (state.unit->in_file()) values = values.clone();
    state.unit->end_visit(/*changed=*/false);
    return values;
  }
  if (state.file == nullptr) return values_of(parts.at(0), key);
  at::Tensor copy;
  for (const Stretch& part : parts) {
    part.block->load();
    const at::Tensor values = values_of(part, key);
    if (!copy.defined()) copy = at::empty({piece->length}, values.options());
    flat::copy(values, flat::slice(copy, part.in_piece, part.length));
    part.block->drop();
  }
  return copy;
}

void ShardedOptimizer::write_local(int unit, int index, const std::string& key, const at::Tensor& value) {
  UnitState& state = units_[unit];
  const at::Tensor plain = flat::plain(value, value.scalar_type(), state.placement).view({-1});
  state.unit->visit();  // which holds the master, perhaps
  for (const Stretch& part : stretches(state, *state.unit->piece_of(index))) {
    part.block->load();
    flat::copy(flat::slice(plain, part.in_piece, part.length), values_of(part, key));
    if (key != "fp32") part.run->tensors.fresh = false;
    part.block->store();
  }
  state.unit->end_visit(/*changed=*/key == "fp32");
}

void ShardedOptimizer::store_shard(int unit) {
  UnitState& state = units_[unit];
  const auto has_master = [](const Block& block) { return block.master.defined(); };
  if (std::none_of(state.blocks.begin(), state.blocks.end(), has_master)) return;
  state.unit->visit(overwrites_shard(state));
  for (Block& block : state.blocks) {
    if (!block.master.defined()) continue;
    block.load();
    for (const Run& run : block.runs) {
      flat::copy(run.tensors.master, flat::slice(state.unit->shard(), run.shard_begin, run.length));
    }
    block.drop();
  }
  state.unit->end_visit(/*changed=*/true);
}

void ShardedOptimizer::refresh_master(int unit, int index) {
  const auto has_master = [](const Block& block) { return block.master.defined(); };
  if (std::none_of(units_[unit].blocks.begin(), units_[unit].blocks.end(), has_master)) return;
  units_[unit].unit->visit();
  copy_to_master(units_[unit], index);
  units_[unit].unit->end_visit(/*changed=*/false);
}

void ShardedOptimizer::copy_to_master(UnitState& state, int index) {
  if (index < 0) {
    for (Block& block : state.blocks) {
      if (!block.master.defined()) continue;
      block.load();
      for (const Run& run : block.runs) {
        flat::copy(flat::slice(state.unit->shard(), run.shard_begin, run.length), run.tensors.master);
      }
      block.store();
    }
    return;
  }
  const ShardLayout::Piece* piece = state.unit->piece_of(index);
  if (piece == nullptr || state.roles[index].group < 0) return;
  for (const Stretch& part : stretches(state, *piece)) {
    if (!part.block->master.defined()) continue;
    part.block->load();
    flat::copy(flat::slice(state.unit->shard(), piece->shard_offset + part.in_piece, part.length),
               values_of(part, "fp32"));
    part.block->store();
  }
}

int64_t ShardedOptimizer::master_bytes() const {
  int64_t bytes = 0;
  for (const auto& state : units_) {
    for (const Block& block : state.blocks) {
      if (block.master.defined()) bytes += block.master.numel() * static_cast<int64_t>(block.master.element_size());
    }
  }
  return bytes;
}

int64_t ShardedOptimizer::state_bytes() const {
  int64_t bytes = 0;
  for (const auto& state : units_) {
    for (const Block& block : state.blocks) {
      for (const auto& tensor : block.states) bytes += tensor.numel() * static_cast<int64_t>(tensor.element_size());
    }
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
