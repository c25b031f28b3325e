// From a module and a configuration to a running engine. The order matters for equal numbers: dtype first, then rank
// 0's values, then the optimizer's fp32 copies.
#include <ATen/Functions.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <regex>

#include "base/error.h"
#include "comm/topology.h"
#include "engine/engine_options.h"
#include "engine/module_engine.h"

namespace deepscale {
namespace {

bool is_castable(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16;
}

/// The dtype in which a parameter trains. Without a 16-bit mode the caller's dtypes stay.
at::ScalarType training_dtype(const at::Tensor& param, const Options& options) {
  if (!is_castable(param.scalar_type())) return param.scalar_type();
  if (options.fp16.enabled) return at::kHalf;
  if (options.bf16.enabled) return at::kBFloat16;
  return param.scalar_type();
}

PlanGroups make_plan_groups(const ZeroOptions& zero, const Communicator& data) {
  PlanGroups groups = PlanGroups::over(data);
  if (zero.mics_shard_size > 0 && zero.mics_shard_size < data.size()) {
    const ShardTopology topology(data.size(), static_cast<int>(zero.mics_shard_size));
    groups.shard = data.subgroup(topology.shard_of(data.rank()));
    groups.replica = data.subgroup(topology.replicas_of(data.rank()));
  }
  if (zero.zero_hpz_partition_size > 1) {
    const ShardTopology nodes(data.size(), static_cast<int>(zero.zero_hpz_partition_size),
                              "zero_optimization.zero_hpz_partition_size");
    groups.node = data.subgroup(nodes.shard_of(data.rank()));
  }
  return groups;
}

void check_settings(const Options& options, const ModelParams& params) {
  DS_CHECK_AS(
      UnsupportedError, !options.torch_autocast.enabled,
      "torch_autocast.enabled is not supported from C++: enable bf16 or fp16, or open an autocast region in the "
      "module's forward");
  for (const auto& param : params.params) {
    const bool on_host = param.tensor.device().is_cpu();
    DS_CHECK_AS(
        UnsupportedError, on_host || options.zero.param_device() == OffloadDevice::kNone,
        "zero_optimization.offload_param with parameters on {} is not supported from C++: build the model on the "
        "CPU or remove offload_param",
        param.tensor.device().str());
  }
}

/// Settings that only Python programs act upon.
std::vector<std::string> without_effect(const Options& options) {
  std::vector<std::string> keys;
  if (options.wall_clock_breakdown) keys.push_back("wall_clock_breakdown");
  if (options.memory_breakdown) keys.push_back("memory_breakdown");
  if (options.flops_profiler.enabled) keys.push_back("flops_profiler");
  if (options.comms_logger.enabled) keys.push_back("comms_logger");
  if (options.tensorboard.enabled) keys.push_back("tensorboard");
  if (options.csv_monitor.enabled) keys.push_back("csv_monitor");
  if (options.wandb.enabled) keys.push_back("wandb");
  if (options.comet.enabled) keys.push_back("comet");
  return keys;
}

}  // namespace

/// Gathers what one unit's forward uses.
class ModuleEngine::Impl::GatherHook : public UnitHook {
 public:
  GatherHook(Engine& engine, std::vector<std::shared_ptr<ParamUnit>> units)
      : engine_(engine), units_(std::move(units)) {}
  void before_forward(const std::vector<at::Tensor>& inputs) override {
    for (const auto& unit : units_) engine_.pre_forward(*unit, inputs);
  }
  void after_forward(const std::vector<at::Tensor>& outputs) override {
    for (const auto& unit : units_) engine_.post_forward(*unit, outputs);
  }

 private:
  Engine& engine_;
  std::vector<std::shared_ptr<ParamUnit>> units_;
};

ModuleEngine::Impl::Impl(std::shared_ptr<torch::nn::Module> given, Config given_config,
                         const InitializeOptions& options, Communicator given_world)
    : model(std::move(given)), config(std::move(given_config)), world(std::move(given_world)), log(world.rank()) {
  DS_CHECK_AS(ConfigError, model != nullptr, "initialize() needs a model, got a null pointer");
  DS_CHECK_AS(
      ConfigError, config.data_parallel_size() == world.size(),
      "the configuration was parsed for {} ranks, but the communicator has {}: parse it with that number, or give "
      "initialize() the path",
      config.data_parallel_size(), world.size());
  if (config->log_level) log.set_level(Logger::parse_level(*config->log_level));
  const c10::NoGradGuard no_grad;
  params = inspect_model(*model, options.units);
  check_settings(config.options(), params);
  if (world.rank() == 0) {
    for (const auto& warning : config.warnings()) log.warning("{}", warning);
    for (const auto& key : without_effect(config.options())) {
      log.warning("{} has no effect in a program without Python", key);
    }
  }
  cast_buffers();
  broadcast_buffers();
  groups = make_plan_groups(config->zero, world);
  make_optimizer(options.groups);
  make_schedule();
  make_engine(options.units);
  if (config->dump_state && world.rank() == 0) log.warning("{}\n{}", description(), config.to_text());
}

ModuleEngine::Impl::~Impl() {
  try {
    if (running_save != nullptr) running_save->wait();
  } catch (const std::exception& error) {
    log.error("{}: {}", running_save_name, error.what());
  }
}

void ModuleEngine::Impl::cast_buffers() {
  if (!config->data_types.buffer_dtype) return;
  std::optional<std::regex> keep;
  if (const auto& names = config->data_types.keep_in_fp32_modules; names && !names->empty()) {
    std::string pattern;
    for (const auto& name : *names) {
      pattern += (pattern.empty() ? "" : "|") + std::regex_replace(name, std::regex("\\*"), ".*");
    }
    keep.emplace(pattern);
  }
  for (auto& entry : model->named_buffers()) {
    at::Tensor& buffer = entry.value();
    if (!buffer.defined() || !is_castable(buffer.scalar_type())) continue;
    const bool stays = keep && std::regex_search(entry.key(), *keep);
    buffer.set_data(buffer.to(stays ? at::kFloat : scalar_type_of(*config->data_types.buffer_dtype)));
  }
}

void ModuleEngine::Impl::broadcast_buffers() {
  if (world.is_self()) return;
  for (const auto& entry : model->named_buffers()) {
    const at::Tensor& buffer = entry.value();
    if (!buffer.defined() || buffer.numel() == 0) continue;
    const at::Tensor bytes = buffer.detach().contiguous().view({-1}).view(at::kByte);
    world.broadcast(bytes, 0, "buffer " + entry.key()).wait_released();
    if (bytes.const_data_ptr() != buffer.const_data_ptr()) {
      buffer.copy_(bytes.view(buffer.scalar_type()).view(buffer.sizes()));
    }
  }
}

void ModuleEngine::Impl::make_optimizer(const std::vector<ParameterGroup>& requested) {
  std::vector<GroupCandidate> candidates;
  std::vector<int> positions;
  for (size_t p = 0; p < params.params.size(); ++p) {
    const auto& [name, tensor, shape, unit] = params.params[p];
    if (!tensor.requires_grad() || tensor.numel() == 0) continue;
    candidates.push_back({name, tensor.dim()});
    positions.push_back(static_cast<int>(p));
  }
  std::vector<GroupRequest> requests;
  for (const auto& group : requested) {
    DS_CHECK_AS(ConfigError, group.takes != nullptr, "a ParameterGroup has no function that chooses its parameters");
    requests.push_back({group.takes, group.settings});
  }
  optimizer = configure_optimizer(config.options(), candidates, requests);
  for (auto& group : optimizer.groups) {
    for (int& member : group.members) member = positions[member];
  }
}

std::vector<std::shared_ptr<ParamUnit>> ModuleEngine::Impl::shard_parameters() {
  std::vector<std::shared_ptr<ParamUnit>> owners(params.params.size());
  const ShardingPlan plan = plan_for_units(config->zero, groups);
  if (!plan.shards_params()) return owners;
  // Small parameters stay whole, up to a total: gathering them would cost more than keeping them.
  int64_t left = config->zero.stage3_model_persistence_threshold;
  std::map<std::pair<int, at::ScalarType>, std::vector<int>> parts;
  for (size_t p = 0; p < params.params.size(); ++p) {
    const auto& [name, tensor, shape, unit] = params.params[p];
    const int64_t numel = tensor.numel();
    const bool small = numel <= config->zero.stage3_param_persistence_threshold && numel <= left;
    if (small) left -= numel;
    if (unit < 0 || small || numel == 0 || !at::isFloatingType(tensor.scalar_type())) continue;
    parts[{unit, training_dtype(tensor, config.options())}].push_back(static_cast<int>(p));
  }
  for (const auto& [key, members] : parts) {
    std::vector<NamedParam> named;
    for (const int p : members) named.push_back({params.params[p].name, params.params[p].tensor});
    const auto made = std::make_shared<ParamUnit>(params.units[key.first].name, std::move(named), plan, key.second);
    for (const int p : members) owners[p] = made;
  }
  return owners;
}

void ModuleEngine::Impl::make_engine(const std::vector<AnyUnit>& units) {
  const std::vector<std::shared_ptr<ParamUnit>> owners = shard_parameters();
  std::vector<int> group_of(params.params.size(), -1);
  for (size_t g = 0; g < optimizer.groups.size(); ++g) {
    for (const int p : optimizer.groups[g].members) group_of[p] = static_cast<int>(g);
  }
  std::vector<EngineParam> listed;
  for (size_t p = 0; p < params.params.size(); ++p) {
    auto& [name, tensor, shape, unit] = params.params[p];
    const at::ScalarType dtype = training_dtype(tensor, config.options());
    if (owners[p] == nullptr && tensor.scalar_type() != dtype) tensor.set_data(tensor.to(dtype));
    listed.push_back({name, tensor, group_of[p], owners[p]});
  }
  engine = std::make_unique<Engine>(make_engine_options(config, groups, optimizer.native), std::move(listed));
  attach_units(units, owners);
}

void ModuleEngine::Impl::attach_units(const std::vector<AnyUnit>& units,
                                      const std::vector<std::shared_ptr<ParamUnit>>& owners) {
  for (size_t u = 0; u < units.size(); ++u) {
    std::vector<std::shared_ptr<ParamUnit>> used;
    for (const int p : params.units[u].params) {
      if (owners[p] != nullptr && std::find(used.begin(), used.end(), owners[p]) == used.end())
        used.push_back(owners[p]);
    }
    if (used.empty()) continue;
    units[u].attach(std::make_shared<GatherHook>(*engine, std::move(used)));
    attached_.units.push_back(units[u]);
  }
}

void ModuleEngine::Impl::make_schedule() {
  if (!config->scheduler.type || optimizer.groups.empty()) return;
  std::vector<ScheduledGroup> scheduled;
  for (const auto& group : optimizer.groups) scheduled.push_back({group.hyper.at("lr")});
  std::vector<std::string> warnings;
  schedule = LrSchedule::make(*config->scheduler.type, config->scheduler.params.text, scheduled, optimizer.has_betas,
                              warnings);
  if (world.rank() == 0) {
    for (const auto& warning : warnings) log.warning("{}", warning);
  }
  if (const auto rates = schedule->initial()) apply_rates(*rates);
}

std::unique_ptr<ModuleEngine> initialize(std::shared_ptr<torch::nn::Module> model, const Config& config,
                                         const InitializeOptions& options) {
  Communicator world = options.communicator ? *options.communicator : world_from_environment();
  return std::unique_ptr<ModuleEngine>(
      new ModuleEngine(std::make_unique<ModuleEngine::Impl>(std::move(model), config, options, std::move(world))));
}

std::unique_ptr<ModuleEngine> initialize(std::shared_ptr<torch::nn::Module> model, const std::string& config,
                                         const InitializeOptions& options) {
  InitializeOptions with_world = options;
  if (!with_world.communicator) with_world.communicator = world_from_environment();
  const Config parsed = Config::open(config, with_world.communicator->size());
  return initialize(std::move(model), parsed, with_world);
}

ParameterGroup ParameterGroup::named(std::vector<std::string> names, std::map<std::string, double> settings) {
  return {[names = std::move(names)](const std::string& name) {
            return std::find(names.begin(), names.end(), name) != names.end();
          },
          std::move(settings)};
}

}  // namespace deepscale
