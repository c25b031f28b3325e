// Command line of the launcher: `deepspeed [options] script [script arguments]`. The script and everything after it are
// taken as they are. Pure: reads nothing but its arguments.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/log.h"

namespace deepscale {

/// What starts the ranks of a run over several machines.
enum class Backend : uint8_t { kLocal, kSsh, kPdsh, kOpenMpi, kMpich, kImpi, kMvapich, kSlurm };

/// The backend's name on the command line.
const char* backend_name(Backend backend);

/// Whether mpirun or srun starts every rank itself, instead of one agent per machine that starts its ranks.
bool starts_every_rank(Backend backend);

struct LauncherOptions {
  std::string include;             ///< resource filter "host:slot,slot@host:..."; empty: everything
  std::string exclude;             ///< the same, taken away; excludes `include`
  int num_nodes = -1;              ///< -1: all
  int ranks_per_node = -1;         ///< --num_gpus, --num_accelerators; -1: all
  std::optional<int> master_port;  ///< not given: 29500, or a free port when that one is busy
  std::string master_addr;         ///< empty: 127.0.0.1 for a local run
  bool module = false;             ///< run the script as `python -m`
  bool no_python = false;          ///< run the script itself
  bool no_local_rank = false;      ///< do not append --local_rank=i
  bool save_pid = false;           ///< write <temporary directory>/<launcher pid>.deepspeed while it runs
  bool bind_cores = false;         ///< give every rank its own share of the cores
  std::string bind_core_list;      ///< cores to share out, "0,2-4,6"; empty: all usable ones
  std::string log_dir;             ///< one log file per rank; empty: the launcher's own output
  LogLevel log_level = LogLevel::kInfo;
  std::string hostfile;            ///< empty: /job/hostfile when it exists
  std::optional<Backend> backend;  ///< not given: this machine alone when that is enough, else ssh
  std::string launcher_args;       ///< further arguments for ssh, pdsh, mpirun or srun, as for a shell
  int node_rank = -1;              ///< with no_ssh: this machine's index among the hosts
  bool no_ssh = false;             ///< start this machine's ranks only; the same command runs on every machine
  bool force_multi = false;        ///< the way of several machines also with one
  std::optional<int> ssh_port;
  std::string venv_script;    ///< sourced by bash on every machine before a rank starts
  std::string slurm_comment;  ///< srun --comment
  std::string slurm_account;  ///< srun --account
  int max_restarts = 0;       ///< how often a failed job is started again
  bool elastic = false;       ///< a restarted job does without machines that cannot be reached
  int min_nodes = 1;          ///< machines that an elastic job needs
  int max_nodes = -1;         ///< machines that an elastic job takes at most; -1: all
  std::string world_info;     ///< base64 of {"host": [slots]} instead of a hostfile; for schedulers
  std::string agent_ticket;   ///< internal: this process is an agent of a run (agent_plan.h)
  int agent_index = -1;       ///< internal: its index, where the ticket does not hold it
  std::string agent_token;    ///< internal: the run's token, where no better way exists
  std::string script;
  std::vector<std::string> script_arguments;
};

/// Result of parsing: options, or a text to print (help, version) instead of a run.
struct ParsedCommandLine {
  LauncherOptions options;
  std::optional<std::string> text;
};

/// `arguments` without the program's name. Throws ConfigError for an unknown option (with the nearest known name), a
/// missing or malformed value, contradicting options, or a missing script.
ParsedCommandLine parse_command_line(const std::vector<std::string>& arguments);

/// Word processors turn "--option" into an en dash and "option": gives the argument with its dashes back.
std::string restore_dashes(const std::string& argument);

/// "0,2-4,6" as ascending CPU numbers. Throws ConfigError naming the part that does not fit.
std::vector<int> parse_core_list(const std::string& text);

}  // namespace deepscale
