// Which setting would fit: candidates are written into the configuration, parsed, planned and checked like any other.
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "config/json_text.h"
#include "engine/plan_builder.h"
#include "zero/sharding_plan_sizes.h"

namespace deepscale {
namespace {

using config::Json;

constexpr const char* kPlaceholder = "/local/nvme";
constexpr int kMostRanks = 4096;

struct Setting {
  std::string path;  ///< "zero_optimization.offload_param.device"
  Json value;
};
using Settings = std::vector<Setting>;

void apply(const Setting& setting, Json& root) {
  Json* at = &root;
  size_t begin = 0;
  for (size_t dot = setting.path.find('.'); dot != std::string::npos; dot = setting.path.find('.', begin)) {
    at = &(*at)[setting.path.substr(begin, dot - begin)];
    if (!at->is_object()) *at = Json::object();  // "zero_optimization": true, or a section that was null
    begin = dot + 1;
  }
  (*at)[setting.path.substr(begin)] = setting.value;
}

std::string describe_settings(const Settings& settings) {
  std::string text;
  for (const Setting& setting : settings) {
    text += (text.empty() ? "" : ", ") + setting.path + " = " + setting.value.dump();
  }
  return text;
}

class Adviser {
 public:
  Adviser(const Config& config, const ModelShapes& shapes, const World& world, const MachineLimits& limits,
          const std::string& nvme_path)
      : config_(config), shapes_(shapes), world_(world), limits_(limits) {
    const ZeroOptions& zero = config->zero;
    folder_ = nvme_path;
    if (zero.offload_param && zero.offload_param->nvme_path) folder_ = *zero.offload_param->nvme_path;
    if (zero.offload_optimizer && zero.offload_optimizer->nvme_path) folder_ = *zero.offload_optimizer->nvme_path;
    if (folder_.empty()) folder_ = kPlaceholder;
  }

  std::optional<PlanAdvice> run() const {
    for (const Settings& settings : candidates()) {
      if (auto advice = attempt(settings, world_.ranks)) return advice;
    }
    return more_ranks();
  }

 private:
  [[nodiscard]] Settings optimizer_on(const char* device) const {
    Settings settings = {{"zero_optimization.offload_optimizer.device", device}};
    if (std::string_view(device) == "nvme") {
      settings.push_back({"zero_optimization.offload_optimizer.nvme_path", folder_});
    }
    return settings;
  }

  [[nodiscard]] Settings params_on(const char* device) const {
    Settings settings;
    if (!is_sharding_params()) settings.push_back({"zero_optimization.stage", 3});
    settings.push_back({"zero_optimization.offload_param.device", device});
    if (std::string_view(device) == "nvme") {
      settings.push_back({"zero_optimization.offload_param.nvme_path", folder_});
      settings.push_back({"zero_optimization.offload_param.max_in_cpu", 0});
    }
    return settings;
  }

  [[nodiscard]] Settings small_buffers(bool params_in_files, bool states_in_files) const {
    Settings settings = {{"zero_optimization.reduce_bucket_size", 1'000'000},
                         {"zero_optimization.stage3_prefetch_bucket_size", 0},
                         {"zero_optimization.stage3_max_live_parameters", 0},
                         {"zero_optimization.stage3_max_reuse_distance", 0}};
    if (params_in_files) {
      settings.push_back({"zero_optimization.offload_param.buffer_count", 3});
      settings.push_back({"zero_optimization.offload_param.buffer_size", 1'000'000});
    }
    if (states_in_files) settings.push_back({"zero_optimization.sub_group_size", 1'000'000});
    return settings;
  }

  [[nodiscard]] static Settings joined(Settings first, const Settings& second) {
    first.insert(first.end(), second.begin(), second.end());
    return first;
  }

  [[nodiscard]] bool is_sharding_params() const { return sizes_for_units(config_->zero, 1).shards_params; }

  /// Optimizers that need whole parameters, or that Python computes.
  [[nodiscard]] bool states_can_be_in_files() const {
    std::string type = config_->optimizer.type.value_or("");
    std::transform(type.begin(), type.end(), type.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return type != "lamb" && type != "muon" && !(world_.optimizer && world_.optimizer->external);
  }

  [[nodiscard]] std::vector<Settings> candidates() const {
    const Settings on_host = optimizer_on("cpu"), all_on_host = joined(on_host, params_on("cpu"));
    std::vector<Settings> list;
    const OffloadDevice states = config_->zero.optimizer_device();
    if (states == OffloadDevice::kNone) list.push_back(on_host);
    if (states != OffloadDevice::kNvme && config_->zero.param_device() == OffloadDevice::kNone) {
      list.push_back(all_on_host);
    }
    if (states_can_be_in_files()) {
      if (states != OffloadDevice::kNvme) list.push_back(optimizer_on("nvme"));
      list.push_back(most_in_files());
    }
    list.push_back(small_buffers(config_->zero.param_device() == OffloadDevice::kNvme, states == OffloadDevice::kNvme));
    list.push_back(least());
    return list;
  }

  [[nodiscard]] Settings most_in_files() const {
    const Settings params = params_on(config_->zero.zero_hpz_partition_size > 1 ? "cpu" : "nvme");
    return joined(optimizer_on("nvme"), params);
  }

  /// What takes least memory.
  [[nodiscard]] Settings least() const {
    if (!states_can_be_in_files()) {
      return joined(joined(optimizer_on("cpu"), params_on("cpu")), small_buffers(false, false));
    }
    const bool params_in_files = config_->zero.zero_hpz_partition_size <= 1;
    return joined(most_in_files(), small_buffers(params_in_files, true));
  }

  [[nodiscard]] std::optional<PlanAdvice> attempt(const Settings& settings, int ranks) const {
    Json root = config::parse_json_text(config_.source_json());
    for (const Setting& setting : settings) apply(setting, root);
    World world = world_;
    world.ranks = ranks;
    if (world.ranks_per_host <= 0) world.ranks_per_host = world_.ranks;
    try {
      const Config changed = Config::parse(config::json_to_text(root), ranks, ParseMode::kZeroInit);
      MemoryPlan plan = make_memory_plan(changed, shapes_, world);
      if (!fits(plan, limits_)) return std::nullopt;
      return PlanAdvice{describe_settings(settings), ranks, std::move(plan)};
    } catch (const ConfigError&) {  // contradicts something else that is configured
      return std::nullopt;
    } catch (const UnsupportedError&) {
      return std::nullopt;
    }
  }

  /// As few as possible: with the configuration as it is, else with what takes least.
  [[nodiscard]] std::optional<PlanAdvice> more_ranks() const {
    for (int ranks = world_.ranks * 2; ranks <= kMostRanks; ranks *= 2) {
      for (const Settings& settings : {Settings{}, least()}) {
        if (auto advice = attempt(settings, ranks)) return advice;
      }
    }
    return std::nullopt;
  }

  const Config& config_;
  const ModelShapes& shapes_;
  const World& world_;
  const MachineLimits& limits_;
  std::string folder_;
};

std::string largest_rows(const MemoryPlan& plan) {
  std::vector<PlanRow> rows = plan.rows;
  std::sort(rows.begin(), rows.end(), [](const PlanRow& a, const PlanRow& b) { return a.bytes > b.bytes; });
  std::string text;
  for (size_t r = 0; r < std::min<size_t>(rows.size(), 4); ++r) {
    text += fmt::format("{}{} {} ({})", r == 0 ? "" : ", ", name_of(rows[r].state), readable_bytes(rows[r].bytes),
                        name_of(rows[r].place));
  }
  return text;
}

std::string totals(const MemoryPlan& plan) {
  std::string text;
  const auto add = [&](int64_t bytes, std::string_view what) {
    if (bytes > 0) text += fmt::format("{}{} {}", text.empty() ? "" : ", ", readable_bytes(bytes), what);
  };
  add(plan.bytes(MemoryPlace::kDevice), "on each device");
  add(plan.host_memory_bytes(), "of host memory");
  add(plan.bytes(MemoryPlace::kFile) * plan.ranks_per_host, "in files");
  return text;
}

}  // namespace

std::optional<PlanAdvice> nearest_fit(const Config& config, const ModelShapes& shapes, const World& world,
                                      const MachineLimits& limits, const std::string& nvme_path) {
  return Adviser(config, shapes, world, limits, nvme_path).run();
}

std::string explain_misfit(const Config& config, const ModelShapes& shapes, const World& world,
                           const MachineLimits& limits, const std::string& nvme_path) {
  const MemoryPlan plan = make_memory_plan(config, shapes, world);
  if (fits(plan, limits)) return "";
  std::string text = fmt::format("the run does not fit into memory\n{}what a rank holds most of: {}\n",
                                 describe(check_plan(plan, limits)), largest_rows(plan));
  const auto advice = nearest_fit(config, shapes, world, limits, nvme_path);
  if (!advice) {
    return text +
           "no setting of zero_optimization makes it fit, nor do up to 4096 ranks: it needs a larger machine or a "
           "smaller model\n";
  }
  std::string change = advice->change;
  if (advice->ranks != world.ranks) {
    change += fmt::format("{}{} ranks on {} hosts", change.empty() ? "" : ", ", advice->ranks,
                          (advice->ranks + advice->plan.ranks_per_host - 1) / advice->plan.ranks_per_host);
  }
  text += fmt::format("the nearest setting that fits: {} (then {} of a host with {} rank{})\n", change,
                      totals(advice->plan), advice->plan.ranks_per_host, advice->plan.ranks_per_host == 1 ? "" : "s");
  if (change.find(kPlaceholder) != std::string::npos) {
    text += fmt::format("{} stands for a folder on a local disk with that much room\n", kPlaceholder);
  }
  return text;
}

}  // namespace deepscale
