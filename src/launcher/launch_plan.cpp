#include "launcher/launch_plan.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>

#include "base/error.h"
#include "launcher/hostfile.h"
#include "launcher/text.h"
#include "platform/machine.h"
#include "platform/tcp.h"

namespace deepscale {
namespace {

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
  std::vector<std::string> ids = split(text, ',');
  std::erase(ids, "");
  return ids;
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

/// Cores of every rank when binding: physical ones, shared evenly, or runs of the list that the user gave.
std::vector<CoreShare> core_shares(const LauncherOptions& options, const MachineFacts& facts, int ranks) {
  if (options.bind_core_list.empty()) return share_cores(facts.topology, facts.cpus, ranks);
  return share_cpu_list(facts.topology, parse_core_list(options.bind_core_list), ranks);
}

void plan_this_machine(const LauncherOptions& options, const MachineFacts& facts, LaunchPlan& plan) {
  const bool hidden = hides_gpus(facts);
  const bool gpus_usable = facts.gpu_count > 0 && !hidden && !plan.cpu_only;
  plan.hosts = {{kLocalHost, local_slots(options, facts, gpus_usable, plan)}};
  // A user who hid the GPUs keeps them hidden.
  plan.visible_devices =
      hidden ? *variable(facts, "CUDA_VISIBLE_DEVICES") : fmt::format("{}", fmt::join(plan.hosts[0].slots, ","));
}

/// This machine is named as the hostfile names it, whatever the filter calls it.
std::vector<HostSlots> known_names(std::vector<HostSlots> filter, const MachineFacts& facts) {
  for (HostSlots& host : filter) {
    const bool listed = std::any_of(facts.hostfile.begin(), facts.hostfile.end(),
                                    [&](const HostSlots& known) { return known.host == host.host; });
    if (!listed && (host.host == kLocalHost || host.host == facts.host) && !facts.own_names.empty())
      host.host = *facts.own_names.begin();
  }
  return filter;
}

std::vector<HostSlots> hosts_of_file(const LauncherOptions& options, const MachineFacts& facts, LaunchPlan& plan) {
  if (!options.include.empty())
    return include_resources(facts.hostfile, known_names(parse_filter(options.include, "--include"), facts));
  if (!options.exclude.empty())
    return exclude_resources(facts.hostfile, known_names(parse_filter(options.exclude, "--exclude"), facts));
  std::vector<HostSlots> hosts = facts.hostfile;
  const int most = options.elastic && options.max_nodes > 0 ? options.max_nodes : static_cast<int>(hosts.size());
  DS_CHECK_AS(ConfigError, options.num_nodes <= static_cast<int>(hosts.size()),
              "--num_nodes {}: the hostfile {} names {} hosts", options.num_nodes, facts.hostfile_path, hosts.size());
  hosts.resize(static_cast<size_t>(std::min(most, options.num_nodes == -1 ? most : options.num_nodes)));
  for (HostSlots& host : hosts) {
    if (options.ranks_per_node == -1) continue;
    if (options.ranks_per_node > static_cast<int>(host.slots.size())) {
      plan.notes.push_back(fmt::format("--num_gpus {} is more than the {} slots of host {}", options.ranks_per_node,
                                       host.slots.size(), host.host));
    }
    host.slots = slots_up_to(options.ranks_per_node);
  }
  return hosts;
}

/// What mpirun and srun cannot do with the given options.
void check_rank_starters(const LauncherOptions& options, const LaunchPlan& plan) {
  const char* name = backend_name(plan.backend);
  const bool filtered = !options.include.empty() || !options.exclude.empty();
  const bool slurm = plan.backend == Backend::kSlurm;
  DS_CHECK_AS(
      ConfigError, slurm || (!filtered && options.num_nodes == -1 && options.ranks_per_node == -1),
      "--launcher {} cannot be combined with --include, --exclude, --num_nodes or --num_gpus: it takes all slots "
      "of the hostfile",
      name);
  DS_CHECK_AS(ConfigError, !options.bind_cores || plan.backend == Backend::kImpi,
              "--bind_cores_to_rank: with --launcher {} the binding is the backend's (--launcher_args)", name);
  DS_CHECK_AS(ConfigError, options.max_restarts == 0 || !options.elastic,
              "--elastic_training: with --launcher {} the backend chooses the machines; use ssh or pdsh", name);
  for (const HostSlots& host : plan.hosts) {
    DS_CHECK_AS(ConfigError, plan.backend == Backend::kOpenMpi || host.slots.size() == plan.hosts[0].slots.size(),
                "--launcher {} needs the same number of slots on every host: {} has {}, {} has {}", name,
                plan.hosts[0].host, plan.hosts[0].slots.size(), host.host, host.slots.size());
    DS_CHECK_AS(ConfigError, host.slots == slots_up_to(static_cast<int>(host.slots.size())),
                "--launcher {} needs slots 0..N-1 on every host: {} has {}", name, host.host,
                fmt::join(host.slots, ","));
  }
}

/// Several machines without a hostfile: Slurm finds them itself, and with --no_ssh every one is started by hand.
void plan_without_hostfile(const LauncherOptions& options, const MachineFacts& facts, LaunchPlan& plan) {
  const int nodes = options.num_nodes;
  if (options.no_ssh) {
    plan_this_machine(options, facts, plan);
    const HostSlots here = plan.hosts[0];
    plan.hosts.assign(static_cast<size_t>(std::max(1, nodes)), here);
    return;
  }
  if (options.backend == Backend::kSlurm && (nodes >= 1 || options.force_multi)) {
    DS_CHECK_AS(ConfigError, options.include.empty() && options.exclude.empty(),
                "--include and --exclude need a hostfile; there is none at {}", facts.hostfile_path);
    plan.nodes = std::max(1, nodes);
    plan.ranks = plan.nodes * std::max(1, options.ranks_per_node);
    return;
  }
  DS_CHECK_AS(ConfigError, nodes <= 1, "--num_nodes {} needs a hostfile that names the machines; there is none at {}",
              nodes, facts.hostfile_path);
  if (!options.hostfile.empty())
    plan.warnings.push_back(fmt::format("there is no hostfile {}: using this machine only", options.hostfile));
  plan_this_machine(options, facts, plan);
}

Backend resolved_backend(const LauncherOptions& options, const MachineFacts& facts, const LaunchPlan& plan) {
  if (options.no_ssh) return Backend::kLocal;
  if (plan.hosts.empty()) return Backend::kSlurm;
  const bool here = plan.hosts[0].host == kLocalHost || facts.own_names.contains(plan.hosts[0].host);
  if (plan.hosts.size() == 1 && here && !options.force_multi) return Backend::kLocal;
  const Backend backend = options.backend.value_or(Backend::kSsh);
  DS_CHECK_AS(ConfigError, backend != Backend::kLocal,
              "--launcher local contradicts the hostfile {}, which names {}; give --launcher ssh, or --num_nodes 1 on "
              "that machine",
              facts.hostfile_path, plan.hosts.size() > 1 ? "several hosts" : plan.hosts[0].host);
  return backend;
}

}  // namespace

bool hides_gpus(const MachineFacts& facts) {
  const std::optional<std::string> visible = variable(facts, "CUDA_VISIBLE_DEVICES");
  return visible && (visible->empty() || *visible == "-1");
}

int LaunchPlan::first_rank(int node) const {
  size_t before = 0;
  for (size_t index = 0; index < static_cast<size_t>(node); ++index) before += hosts[index].slots.size();
  return static_cast<int>(before);
}

void check_binding(const LauncherOptions& options, const MachineFacts& facts, int ranks) {
  if (!options.bind_cores) return;
  DS_CHECK_AS(ConfigError, !variable(facts, "KMP_AFFINITY"),
              "--bind_cores_to_rank contradicts the environment variable KMP_AFFINITY: unset it");
  const std::vector<int> listed =
      options.bind_core_list.empty() ? std::vector<int>{} : parse_core_list(options.bind_core_list);
  for (const int core : listed) {
    DS_CHECK_AS(ConfigError, std::find(facts.cpus.begin(), facts.cpus.end(), core) != facts.cpus.end(),
                "--bind_core_list: core {} cannot be used here; usable: {}", core, fmt::join(facts.cpus, ","));
  }
  try {
    core_shares(options, facts, ranks);
  } catch (const ConfigError& error) {
    ds_throw<ConfigError>("--bind_cores_to_rank: {}", error.what());
  }
}

MachineFacts gather_own_facts(const LauncherOptions& options) {
  MachineFacts facts;
  facts.environment = environment_variables();
  facts.cpus = usable_cpus();
  if (options.bind_cores) facts.topology = cpu_topology();
  facts.gpu_count = visible_gpu_count();
  facts.host = host_name();
  return facts;
}

MachineFacts gather_machine_facts(const LauncherOptions& options) {
  MachineFacts facts = gather_own_facts(options);
  if (!options.world_info.empty()) {
    facts.hostfile = parse_world_info(options.world_info);
    facts.hostfile_path = "--world_info";
    return facts;
  }
  facts.hostfile_path = options.hostfile.empty() ? kDefaultHostfile : options.hostfile;
  std::error_code error;
  if (std::filesystem::status(facts.hostfile_path, error).type() == std::filesystem::file_type::not_found) return facts;
  facts.hostfile = read_hostfile(facts.hostfile_path);
  const std::vector<std::string> own = own_addresses();
  for (const HostSlots& host : facts.hostfile) {
    const bool by_name = host.host == kLocalHost || host.host == facts.host;
    const auto is_own = [&](const std::string& address) {
      return is_loopback(address) || std::find(own.begin(), own.end(), address) != own.end();
    };
    const std::vector<std::string> addresses = by_name ? std::vector<std::string>{} : addresses_of(host.host);
    if (!by_name && !std::any_of(addresses.begin(), addresses.end(), is_own)) continue;
    facts.own_names.insert(host.host);
    break;  // a machine is named once, and name servers may be slow
  }
  return facts;
}

LaunchPlan make_launch_plan(const LauncherOptions& options, const MachineFacts& facts) {
  LaunchPlan plan;
  plan.cpu_only = variable(facts, "DS_ACCELERATOR") == "cpu";
  if (facts.hostfile.empty()) {
    plan_without_hostfile(options, facts, plan);
  } else {
    plan.hosts = hosts_of_file(options, facts, plan);
    const std::string visible = variable(facts, "CUDA_VISIBLE_DEVICES").value_or("");
    if (!visible.empty() && !hides_gpus(facts)) {
      plan.notes.push_back(
          fmt::format("CUDA_VISIBLE_DEVICES={} is ignored: {} says which slots", visible, facts.hostfile_path));
    }
  }
  plan.backend = resolved_backend(options, facts, plan);
  if (!plan.hosts.empty()) {
    plan.nodes = static_cast<int>(plan.hosts.size());
    plan.ranks = plan.first_rank(plan.nodes);
  }
  DS_CHECK_AS(ConfigError, !options.elastic || plan.nodes >= options.min_nodes,
              "--min_elastic_nodes is {}, and there {} {} machine{}", options.min_nodes, plan.nodes == 1 ? "is" : "are",
              plan.nodes, plan.nodes == 1 ? "" : "s");
  plan.master_port = options.master_port.value_or(0);
  plan.master_addr = options.master_addr;
  if (plan.backend == Backend::kLocal) {
    plan.node_rank = options.no_ssh ? options.node_rank : 0;
    DS_CHECK_AS(ConfigError, plan.node_rank < plan.nodes, "--node_rank {}: there are {} machines (0..{})",
                plan.node_rank, plan.nodes, plan.nodes - 1);
    if (!facts.hostfile.empty()) {
      const HostSlots& here = plan.hosts[static_cast<size_t>(plan.node_rank)];
      plan.visible_devices =
          hides_gpus(facts) ? *variable(facts, "CUDA_VISIBLE_DEVICES") : fmt::format("{}", fmt::join(here.slots, ","));
    }
    if (plan.master_addr.empty()) plan.master_addr = "127.0.0.1";
    check_binding(options, facts, plan.local_size());
  } else if (starts_every_rank(plan.backend)) {
    check_rank_starters(options, plan);
  }
  return plan;
}

ProcessSpec rank_process(const LauncherOptions& options, const RankSettings& settings, const RankPlace& place,
                         const MachineFacts& facts) {
  ProcessSpec spec;
  if (!options.venv_script.empty()) {
    // In a function, so that the script does not take the rank's arguments for its own.
    spec.arguments = {"bash", "-c", "activate() { . \"$0\"; }; activate; exec \"$@\"", options.venv_script};
  }
  if (!options.no_python) {
    // The script's environment has its own interpreter.
    spec.arguments.push_back(options.venv_script.empty() ? settings.python : "python");
    spec.arguments.push_back("-u");
    if (options.module) spec.arguments.push_back("-m");
  }
  spec.arguments.push_back(options.script);
  if (!options.no_local_rank) spec.arguments.push_back(fmt::format("--local_rank={}", place.local_rank));
  spec.arguments.insert(spec.arguments.end(), options.script_arguments.begin(), options.script_arguments.end());

  std::map<std::string, std::string> environment = facts.environment;
  if (settings.visible_devices) environment["CUDA_VISIBLE_DEVICES"] = *settings.visible_devices;
  environment["MASTER_ADDR"] = settings.master_addr;
  environment["MASTER_PORT"] = std::to_string(settings.master_port);
  environment["WORLD_SIZE"] = std::to_string(place.world_size);
  environment["CROSS_RANK"] = std::to_string(place.node);
  environment["CROSS_SIZE"] = std::to_string(place.nodes);
  environment["LOCAL_SIZE"] = std::to_string(place.local_size);
  environment["RANK"] = std::to_string(place.rank);
  environment["LOCAL_RANK"] = std::to_string(place.local_rank);
  environment["DEEPSPEED_RESTART_COUNT"] = std::to_string(settings.restart_count);
  if (options.bind_cores) {
    const CoreShare share = core_shares(options, facts, place.local_size)[static_cast<size_t>(place.local_rank)];
    spec.cpus = share.cpus;
    spec.memory_node = share.memory_node;
    environment["OMP_NUM_THREADS"] = std::to_string(spec.cpus.size());
  } else if (place.local_size > 1) {
    // Every rank would otherwise start one thread per core, and they would all wait for each other.
    const size_t share = std::max<size_t>(1, facts.cpus.size() / static_cast<size_t>(place.local_size));
    environment.emplace("OMP_NUM_THREADS", std::to_string(share));
  }
  for (const auto& [name, value] : environment) spec.environment.push_back(fmt::format("{}={}", name, value));
  return spec;
}

}  // namespace deepscale
