// From options and facts to what will run: which slots, with which environment and command. Pure, so that every rule of
// resolution is a unit test; launching over several machines will add hosts to the same plan.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "launcher/options.h"
#include "launcher/resource_filter.h"
#include "platform/process.h"

namespace deepscale {

/// What the machine and the environment say, gathered once.
struct MachineFacts {
  std::map<std::string, std::string> environment;
  std::vector<int> cpus;  ///< usable logical CPUs
  int gpu_count = 0;      ///< GPUs this process can open
  std::string host;       ///< host name of this machine
  bool default_hostfile_exists = false;
  bool given_hostfile_exists = false;
};

/// A run. Ranks are numbered by hosts in order, slots in order.
struct LaunchPlan {
  std::vector<HostSlots> hosts;
  int node_rank = 0;  ///< index of this machine in `hosts`
  std::string master_addr;
  int master_port = 0;             ///< 0: still to be chosen
  std::string visible_devices;     ///< CUDA_VISIBLE_DEVICES of every rank
  std::vector<std::string> notes;  ///< decisions that the user should see

  int world_size() const;
  int local_size() const { return static_cast<int>(hosts[static_cast<size_t>(node_rank)].slots.size()); }
  /// Global rank of this machine's first rank.
  int first_rank() const;
};

MachineFacts gather_machine_facts(const LauncherOptions& options);

/// Throws ConfigError for filters that name unknown resources and for too many ranks per core when binding;
/// UnsupportedError naming every option whose feature is not built.
LaunchPlan make_launch_plan(const LauncherOptions& options, const MachineFacts& facts);

/// Program, arguments and environment of the rank with the given index on this machine. `python` may be empty with
/// --no_python. `log_file` may be empty.
ProcessSpec rank_process(const LauncherOptions& options, const LaunchPlan& plan, const MachineFacts& facts,
                         int local_rank, const std::string& python);

}  // namespace deepscale
