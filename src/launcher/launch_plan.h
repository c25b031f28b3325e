// From options and facts to what will run: which slots of which machines, with which environment and command. Pure, so
// that every rule of resolution is a unit test.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "launcher/options.h"
#include "launcher/resource_filter.h"
#include "platform/process.h"
#include "platform/topology.h"

namespace deepscale {

/// What the machine and the environment say, gathered once.
struct MachineFacts {
  std::map<std::string, std::string> environment;
  std::vector<int> cpus;            ///< usable logical CPUs
  CpuTopology topology;             ///< filled when ranks are to be bound
  int gpu_count = 0;                ///< GPUs this process can open
  std::string host;                 ///< host name of this machine
  std::vector<HostSlots> hostfile;  ///< empty: there is none
  std::string hostfile_path;        ///< where it was looked for
  std::set<std::string> own_names;  ///< names in the hostfile that mean this machine
};

/// Port of the rendezvous when none is given and it is free.
inline constexpr int kDefaultMasterPort = 29500;

/// A run. Ranks are numbered by hosts in order, slots in order.
struct LaunchPlan {
  std::vector<HostSlots> hosts;  ///< empty when Slurm chooses them
  int node_rank = 0;             ///< index of this machine in `hosts`, where its ranks are started from here
  Backend backend = Backend::kLocal;
  int nodes = 1;                      ///< number of machines, also where `hosts` is empty
  int ranks = 0;                      ///< number of ranks over all machines
  std::string master_addr;            ///< empty: found out when the machines have answered
  int master_port = 0;                ///< 0: still to be chosen
  bool cpu_only = false;              ///< the user said so (DS_ACCELERATOR=cpu)
  std::string visible_devices;        ///< CUDA_VISIBLE_DEVICES of every rank of this machine
  std::vector<std::string> notes;     ///< decisions that the user should see
  std::vector<std::string> warnings;  ///< what the user has probably not meant

  int local_size() const { return static_cast<int>(hosts[static_cast<size_t>(node_rank)].slots.size()); }
  /// Global rank of the first rank on the host with this index.
  int first_rank(int node) const;
};

/// Where a rank stands among the others.
struct RankPlace {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;
  int local_size = 1;
  int node = 0;
  int nodes = 1;
};

/// What all ranks of one machine share.
struct RankSettings {
  std::string python;  ///< may be empty with --no_python
  std::string master_addr;
  int master_port = 0;
  std::optional<std::string> visible_devices;  ///< nothing: as the environment has it
  int restart_count = 0;
};

/// What every machine of a run gathers, the launcher's own and those of its agents: everything but the hostfile.
MachineFacts gather_own_facts(const LauncherOptions& options);
/// Whether the user hid the GPUs of this machine: CUDA_VISIBLE_DEVICES is empty or -1.
bool hides_gpus(const MachineFacts& facts);
/// These and the hostfile.
MachineFacts gather_machine_facts(const LauncherOptions& options);

/// Throws ConfigError for filters that name unknown resources, a number of machines that the hostfile does not have,
/// options that the backend cannot honour, and too many ranks per core when binding.
LaunchPlan make_launch_plan(const LauncherOptions& options, const MachineFacts& facts);

/// Throws ConfigError when the cores of --bind_cores_to_rank cannot be shared by this many ranks here.
void check_binding(const LauncherOptions& options, const MachineFacts& facts, int ranks);

/// Program, arguments and environment of a rank.
ProcessSpec rank_process(const LauncherOptions& options, const RankSettings& settings, const RankPlace& place,
                         const MachineFacts& facts);

}  // namespace deepscale
