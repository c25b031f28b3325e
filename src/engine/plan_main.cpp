// ds_plan: what each rank of a training run will hold where, without loading anything, and whether this machine has it.
// Exit code 0; 1 when the run does not fit or a file is unusable; 2 for an unusable command line.
#include <fmt/core.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "engine/plan_builder.h"
#include "platform/machine.h"

namespace {

using namespace deepscale;

constexpr int64_t kMib = 1 << 20;
constexpr double kGib = 1 << 30;
constexpr int kMostOnAHost = 4096;

struct Request {
  std::string model, config, device = "auto", nvme_path;
  int world = 1, ranks_per_host = 0;
  int64_t program_mib = 512;
  double device_gib = 0, host_gib = 0;
  bool json = false, inference = false, ignore_limits = false;
};

void add_options(CLI::App& app, Request& request) {
  app.add_option("--model", request.model,
                 "config.json of a Hugging Face model, a .safetensors file, its index, or a folder with one of them");
  app.add_option("--ds_config", request.config, "DeepSpeed configuration");
  app.add_option("--world", request.world, "number of ranks")->check(CLI::Range(1, 1 << 20));
  app.add_option("--ranks_per_host", request.ranks_per_host, "ranks on one host; 0: all of them")
      ->check(CLI::Range(0, kMostOnAHost));
  app.add_option("--device", request.device, "where the model trains: cpu, cuda, or auto for cuda where there is a GPU")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  app.add_option("--device_gib", request.device_gib, "memory of each device in GiB; 0: not checked")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--host_gib", request.host_gib, "memory of each host in GiB; 0: what this machine has available")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--nvme_path", request.nvme_path, "folder to suggest for files where the configuration names none");
  app.add_option("--program_mib", request.program_mib, "memory of each rank's program (Python and torch) in MiB")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
  app.add_flag("--inference", request.inference, "parameters only: no gradients, no optimizer");
  app.add_flag("--json", request.json, "print one JSON object instead of a table");
}

/// What is wrong with a command line whose words are right; empty: nothing.
std::string missing_in(const Request& request) {
  if (request.model.empty()) {
    return "--model is missing: name the config.json of a Hugging Face model, a .safetensors file, its index, or a "
           "folder with one of them";
  }
  if (request.config.empty()) return "--ds_config is missing: name the DeepSpeed configuration of the run";
  if (request.ranks_per_host == 0 && request.world > kMostOnAHost) {
    return fmt::format("--world {} needs --ranks_per_host: without it all of them would be on one host", request.world);
  }
  return "";
}

World world_of(const Request& request) {
  World world;
  world.ranks = request.world;
  world.ranks_per_host = request.ranks_per_host;
  world.accelerator = request.device == "cuda" || (request.device == "auto" && visible_gpu_count() > 0);
  world.program_bytes = request.program_mib * kMib;
  world.trains = !request.inference;
  return world;
}

MachineLimits limits_of(const Request& request, const Config& config) {
  const ZeroOptions& zero = config->zero;
  std::vector<std::string> folders = {request.nvme_path};
  if (zero.offload_param) folders.push_back(zero.offload_param->nvme_path.value_or(""));
  if (zero.offload_optimizer) folders.push_back(zero.offload_optimizer->nvme_path.value_or(""));
  MachineLimits limits = read_machine_limits(folders);
  // This program's own address space is not the run's.
  for (ProcessLimit& limit : limits.process) limit.used_bytes = 0;
  if (request.device_gib > 0) limits.device_bytes = static_cast<int64_t>(request.device_gib * kGib);
  if (request.host_gib > 0) {
    const auto bytes = static_cast<int64_t>(request.host_gib * kGib);
    limits.memory = {bytes, bytes, ""};
    limits.groups.clear();
    limits.process.clear();
  }
  return limits;
}

nlohmann::ordered_json advice_json(const std::optional<PlanAdvice>& advice) {
  if (!advice) return nullptr;
  return {{"change", advice->change},
          {"ranks", advice->ranks},
          {"device_bytes", advice->plan.bytes(MemoryPlace::kDevice)},
          {"host_bytes", advice->plan.host_memory_bytes()},
          {"file_bytes", advice->plan.bytes(MemoryPlace::kFile) * advice->plan.ranks_per_host}};
}

int print_plan(const Request& request) {
  const Config config = Config::from_file(request.config, request.world, ParseMode::kZeroInit);
  const ModelShapes shapes = read_model_shapes(request.model);
  World world = world_of(request);
  const MachineLimits limits = limits_of(request, config);
  world.memory_total_bytes = limits.memory.total_bytes;
  world.memory_available_bytes = limits.memory.available_bytes;
  for (const MemoryLimit& group : limits.groups) {
    world.memory_total_bytes = std::min(world.memory_total_bytes, group.limit_bytes);
    world.memory_available_bytes = std::min(world.memory_available_bytes, group.limit_bytes - group.used_bytes);
  }
  const MemoryPlan plan = make_memory_plan(config, shapes, world);
  const bool fit = fits(plan, limits);
  if (request.json) {
    auto json = nlohmann::ordered_json::parse(to_json(plan, limits));
    json["advice"] =
        fit ? nlohmann::ordered_json() : advice_json(nearest_fit(config, shapes, world, limits, request.nvme_path));
    fmt::print("{}\n", json.dump(2));
  } else {
    fmt::print("{}", to_table(plan, limits));
    if (!fit) fmt::print("{}", explain_misfit(config, shapes, world, limits, request.nvme_path));
    if (fit) fmt::print("{}it fits\n", describe(check_plan(plan, limits)));
  }
  return fit ? 0 : 1;
}

}  // namespace

int main(int count, char** values) {
  CLI::App app("Prints what each rank of a training run will hold in memory and files, and whether it fits.",
               "ds_plan");
  Request request;
  add_options(app, request);
  try {
    std::vector<std::string> words = program_arguments(count, values);
    std::reverse(words.begin(), words.end());  // as CLI11 wants them
    app.parse(std::move(words));
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (const std::string problem = missing_in(request); !problem.empty()) {
    fmt::print(stderr, "ds_plan: error: {}\nRun ds_plan --help for more.\n", problem);
    return 2;
  }
  try {
    return print_plan(request);
  } catch (const std::exception& error) {
    fmt::print(stderr, "ds_plan: error: {}\n", error.what());
    return 1;
  }
}
