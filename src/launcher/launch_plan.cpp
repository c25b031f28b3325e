#include "launcher/launch_plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

constexpr const char* kDefaultHostfile = "/job/hostfile";
constexpr const char* kLocalHost = "localhost";

std::optional<std::string> variable(const MachineFacts& facts, const std::string& name) {
  const auto found = facts.environment.find(name);
  if (found == facts.environment.end()) return std::nullopt;
  return found->second;
}

std::vector<std::string> slots_up_to(int count) {
  std::vector<std::string> slots;
  for (int slot = 0; slot < count; ++slot) slots.push_back(std::to_string(slot));
  return slots;
}

std::vector<std::string> visible_ids(const std::string& text) {
  std::vector<std::string> ids;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) ids.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return ids;
}

void refuse_unbuilt(const LauncherOptions& options, const MachineFacts& facts, LaunchPlan& plan) {
  DS_CHECK_AS(UnsupportedError, options.not_built.empty(), "{}", fmt::join(options.not_built, "; "));
  DS_CHECK_AS(UnsupportedError, options.num_nodes <= 1, "multi-node: not built yet (--num_nodes {}); torchrun works",
              options.num_nodes);
  DS_CHECK_AS(UnsupportedError, !facts.given_hostfile_exists,
              "multi-node: not built yet (--hostfile {}); torchrun works", options.hostfile);
  if (!options.hostfile.empty()) {
    plan.notes.push_back(fmt::format("there is no hostfile {}: using this machine only", options.hostfile));
  } else if (facts.default_hostfile_exists) {
    DS_CHECK_AS(UnsupportedError, options.num_nodes == 1,
                "multi-node: not built yet, and {} exists; to run on this machine only give --num_nodes 1",
                kDefaultHostfile);
    plan.notes.push_back(fmt::format("--num_nodes 1: {} is not used", kDefaultHostfile));
  }
}

/// Number of slots when nothing names any: GPUs, or on a machine without them LOCAL_SIZE or 1.
int device_count(const MachineFacts& facts, bool gpus_usable) {
  if (gpus_usable) return facts.gpu_count;
  const std::string text = variable(facts, "LOCAL_SIZE").value_or("1");
  int count = 0;
  if (!text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos)
    count = std::stoi(text);
  DS_CHECK_AS(ConfigError, count >= 1, "environment variable LOCAL_SIZE must be at least 1, found \"{}\"", text);
  return count;
}

/// This machine under its own name means the same as localhost.
std::vector<HostSlots> local_filter(const std::string& text, const std::string& option, const MachineFacts& facts) {
  std::vector<HostSlots> filter = parse_filter(text, option);
  for (HostSlots& host : filter) {
    if (host.host == facts.host || host.host == "127.0.0.1") host.host = kLocalHost;
  }
  return filter;
}

std::vector<std::string> filtered_slots(const LauncherOptions& options, const MachineFacts& facts, bool gpus_usable) {
  HostSlots here{kLocalHost, slots_up_to(device_count(facts, gpus_usable))};
  if (!options.exclude.empty()) {
    return exclude_resources({here}, local_filter(options.exclude, "--exclude", facts))[0].slots;
  }
  const std::vector<HostSlots> filter = local_filter(options.include, "--include", facts);
  if (!gpus_usable && !variable(facts, "LOCAL_SIZE")) {
    // Without devices a slot is only a rank's name, so the filter itself says how many there are.
    for (const HostSlots& host : filter) {
      for (const std::string& slot : host.slots) {
        if (std::find(here.slots.begin(), here.slots.end(), slot) == here.slots.end()) here.slots.push_back(slot);
      }
    }
    std::sort(here.slots.begin(), here.slots.end(), [](const std::string& a, const std::string& b) {
      return std::make_pair(a.size(), a) < std::make_pair(b.size(), b);
    });
  }
  return include_resources({here}, filter)[0].slots;
}

/// Slots of this machine, and the note about CUDA_VISIBLE_DEVICES when it is set.
std::vector<std::string> local_slots(const LauncherOptions& options, const MachineFacts& facts, bool gpus_usable,
                                     LaunchPlan& plan) {
  const std::string visible = variable(facts, "CUDA_VISIBLE_DEVICES").value_or("");
  const std::vector<std::string> ids = visible == "-1" ? std::vector<std::string>{} : visible_ids(visible);
  const bool filtered = !options.include.empty() || !options.exclude.empty();
  const int wanted = options.ranks_per_node;
  if (!ids.empty()) {
    if (!filtered && wanted == -1) {
      plan.notes.push_back(fmt::format("using CUDA_VISIBLE_DEVICES={} (--include=localhost:{})", visible, visible));
      return ids;
    }
    if (!filtered && wanted <= static_cast<int>(ids.size())) {
      plan.notes.push_back(
          fmt::format("--num_gpus {}: using the first {} of CUDA_VISIBLE_DEVICES={}", wanted, wanted, visible));
      return {ids.begin(), ids.begin() + wanted};
    }
    plan.notes.push_back(fmt::format("CUDA_VISIBLE_DEVICES={} is ignored because --{} was given", visible,
                                     filtered ? "include/--exclude" : "num_gpus with a larger number"));
  }
  if (filtered) return filtered_slots(options, facts, gpus_usable);
  if (wanted == -1) return slots_up_to(device_count(facts, gpus_usable));
  if (gpus_usable && wanted > facts.gpu_count) {
    plan.notes.push_back(
        fmt::format("--num_gpus {} is more than the {} GPUs of this machine", wanted, facts.gpu_count));
  }
  return slots_up_to(wanted);
}

std::vector<int> cores_to_share(const LauncherOptions& options, const MachineFacts& facts) {
  return options.bind_core_list.empty() ? facts.cpus : parse_core_list(options.bind_core_list);
}

void check_binding(const LauncherOptions& options, const MachineFacts& facts, const LaunchPlan& plan) {
  if (!options.bind_cores) return;
  DS_CHECK_AS(ConfigError, !variable(facts, "KMP_AFFINITY"),
              "--bind_cores_to_rank contradicts the environment variable KMP_AFFINITY: unset it");
  const std::vector<int> cores = cores_to_share(options, facts);
  for (const int core : cores) {
    DS_CHECK_AS(ConfigError, std::find(facts.cpus.begin(), facts.cpus.end(), core) != facts.cpus.end(),
                "--bind_core_list: core {} cannot be used here; usable: {}", core, fmt::join(facts.cpus, ","));
  }
  DS_CHECK_AS(ConfigError, cores.size() >= static_cast<size_t>(plan.local_size()),
              "--bind_cores_to_rank: {} cores cannot be shared by {} ranks; start fewer ranks or do not bind",
              cores.size(), plan.local_size());
}

/// Cores of one rank when binding: equal shares in order, the remainder left unused.
std::vector<int> cores_of_rank(const LauncherOptions& options, const MachineFacts& facts, int local_rank, int ranks) {
  const std::vector<int> cores = cores_to_share(options, facts);
  const std::ptrdiff_t share = static_cast<std::ptrdiff_t>(cores.size()) / ranks;
  return {cores.begin() + local_rank * share, cores.begin() + (local_rank + 1) * share};
}

}  // namespace

int LaunchPlan::world_size() const {
  size_t ranks = 0;
  for (const HostSlots& host : hosts) ranks += host.slots.size();
  return static_cast<int>(ranks);
}

int LaunchPlan::first_rank() const {
  size_t ranks = 0;
  for (size_t node = 0; node < static_cast<size_t>(node_rank); ++node) ranks += hosts[node].slots.size();
  return static_cast<int>(ranks);
}

MachineFacts gather_machine_facts(const LauncherOptions& options) {
  MachineFacts facts;
  facts.environment = environment_variables();
  facts.cpus = usable_cpus();
  facts.gpu_count = visible_gpu_count();
  facts.host = host_name();
  facts.default_hostfile_exists = is_readable(kDefaultHostfile);
  facts.given_hostfile_exists = !options.hostfile.empty() && is_readable(options.hostfile);
  return facts;
}

LaunchPlan make_launch_plan(const LauncherOptions& options, const MachineFacts& facts) {
  LaunchPlan plan;
  refuse_unbuilt(options, facts, plan);
  const std::optional<std::string> visible = variable(facts, "CUDA_VISIBLE_DEVICES");
  const bool hidden = visible && (visible->empty() || *visible == "-1");
  const bool gpus_usable = facts.gpu_count > 0 && !hidden && variable(facts, "DS_ACCELERATOR") != "cpu";
  plan.hosts = {{kLocalHost, local_slots(options, facts, gpus_usable, plan)}};
  // A user who hid the GPUs keeps them hidden.
  plan.visible_devices = hidden ? *visible : fmt::format("{}", fmt::join(plan.hosts[0].slots, ","));
  plan.master_addr = options.master_addr.empty() ? "127.0.0.1" : options.master_addr;
  plan.master_port = options.master_port.value_or(0);
  check_binding(options, facts, plan);
  return plan;
}

ProcessSpec rank_process(const LauncherOptions& options, const LaunchPlan& plan, const MachineFacts& facts,
                         int local_rank, const std::string& python) {
  ProcessSpec spec;
  if (!options.no_python) {
    spec.arguments = {python, "-u"};
    if (options.module) spec.arguments.push_back("-m");
  }
  spec.arguments.push_back(options.script);
  if (!options.no_local_rank) spec.arguments.push_back(fmt::format("--local_rank={}", local_rank));
  spec.arguments.insert(spec.arguments.end(), options.script_arguments.begin(), options.script_arguments.end());

  std::map<std::string, std::string> environment = facts.environment;
  environment["CUDA_VISIBLE_DEVICES"] = plan.visible_devices;
  environment["MASTER_ADDR"] = plan.master_addr;
  environment["MASTER_PORT"] = std::to_string(plan.master_port);
  environment["WORLD_SIZE"] = std::to_string(plan.world_size());
  environment["CROSS_RANK"] = std::to_string(plan.node_rank);
  environment["CROSS_SIZE"] = std::to_string(plan.hosts.size());
  environment["LOCAL_SIZE"] = std::to_string(plan.local_size());
  environment["RANK"] = std::to_string(plan.first_rank() + local_rank);
  environment["LOCAL_RANK"] = std::to_string(local_rank);
  if (options.bind_cores) {
    spec.cpus = cores_of_rank(options, facts, local_rank, plan.local_size());
    environment["OMP_NUM_THREADS"] = std::to_string(spec.cpus.size());
  } else if (plan.local_size() > 1) {
    // Every rank would otherwise start one thread per core, and they would all wait for each other.
    const size_t share = std::max<size_t>(1, facts.cpus.size() / static_cast<size_t>(plan.local_size()));
    environment.emplace("OMP_NUM_THREADS", std::to_string(share));
  }
  for (const auto& [name, value] : environment) spec.environment.push_back(fmt::format("{}={}", name, value));
  return spec;
}

}  // namespace deepscale
