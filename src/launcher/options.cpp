#include "launcher/options.h"

#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>

#include "base/error.h"
#include "launcher/hostfile.h"
#include "launcher/text.h"
#include "platform/topology.h"

namespace deepscale {
namespace {

constexpr Backend kBackends[] = {Backend::kLocal, Backend::kSsh,  Backend::kPdsh,    Backend::kOpenMpi,
                                 Backend::kMpich, Backend::kImpi, Backend::kMvapich, Backend::kSlurm};
/// As many as DeepSpeed's elastic agent allows.
constexpr int kElasticRestarts = 100;

/// Values as CLI11 fills them, before they are checked.
struct RawOptions {
  LauncherOptions options;
  int master_port = 29500;
  bool verbose = false;
  bool quiet = false;
  bool deepspeed_flag = false;
  bool no_ssh_check = false;
  std::string log_level = "info";
  std::string rank_log_dir;
  std::string launcher;
  int ssh_port = 0;
  int min_nodes = -1;
  std::string autotuning;
};

void declare_local_options(CLI::App& app, RawOptions& raw) {
  LauncherOptions& options = raw.options;
  app.add_option("--num_gpus,--num_accelerators", options.ranks_per_node,
                 "ranks on this machine (default: one per GPU; without GPUs LOCAL_SIZE or 1)");
  app.add_option("-i,--include", options.include, "resources to use, for instance localhost:0,2");
  app.add_option("-e,--exclude", options.exclude, "resources to leave out, same form");
  app.add_option("--num_nodes", options.num_nodes, "machines to use");
  app.add_option("--master_port", raw.master_port,
                 "port of the rendezvous (default: 29500, or a free one when it is busy)");
  app.add_option("--master_addr", options.master_addr, "address of rank 0 (default: 127.0.0.1)");
  app.add_flag("--module", options.module, "run the script as a module, like python -m");
  app.add_flag("--no_python", options.no_python, "run the script itself, without a Python interpreter");
  app.add_flag("--no_local_rank", options.no_local_rank, "do not pass --local_rank=N to the script");
  app.add_flag("--bind_cores_to_rank", options.bind_cores, "give every rank its own cores");
  app.add_option("--bind_core_list", options.bind_core_list, "cores to share out, for instance 0,2-4,6");
  app.add_option("--log_dir", options.log_dir,
                 "write each rank's output to DIR/<time>_rank<R>.log, not to the terminal")
      ->type_name("DIR");
  app.add_option("--enable_each_rank_log", raw.rank_log_dir, "same as --log_dir")->type_name("DIR");
  app.add_flag("--save_pid", options.save_pid,
               "keep <temporary directory>/<launcher pid>.deepspeed while the run lasts");
  app.add_option("--log_level", raw.log_level, "debug, info, warning, error, critical (default: info)");
  app.add_flag("-v,--verbose", raw.verbose, "same as --log_level debug");
  app.add_flag("-q,--quiet", raw.quiet, "print errors only");
  app.add_flag("--deepspeed,--deepscale", raw.deepspeed_flag,
               "accepted; every script started here may use the library");
}

void declare_multi_node_options(CLI::App& app, RawOptions& raw) {
  LauncherOptions& options = raw.options;
  app.add_option("-H,--hostfile", options.hostfile, "machines, one \"host slots=N\" per line (default: /job/hostfile)");
  app.add_option("--launcher", raw.launcher,
                 "what starts the other machines: ssh (default), pdsh, slurm, openmpi, mpich, impi, mvapich; or local");
  app.add_option("--launcher_args", options.launcher_args, "further arguments for that program");
  app.add_option("--node_rank", options.node_rank, "with --no_ssh: number of this machine, from 0");
  app.add_flag("--no_ssh", options.no_ssh, "start this machine's ranks only; run the same command on every machine");
  app.add_flag("--no_ssh_check", raw.no_ssh_check, "accepted; a machine that ssh cannot reach is reported anyway");
  app.add_flag("--force_multi", options.force_multi, "go the way of several machines also with one");
  app.add_option("--ssh_port", raw.ssh_port, "port of the ssh servers (default: what ssh is configured for)");
  app.add_option("--venv_script", options.venv_script,
                 "script that bash sources on every machine before the ranks start");
  app.add_option("--comment", options.slurm_comment, "srun's --comment");
  app.add_option("--account", options.slurm_account, "srun's --account");
  app.add_option("--max_restarts", options.max_restarts,
                 "start a failed job again, at most so often (default: 0); scripts see DEEPSPEED_RESTART_COUNT");
  app.add_flag("--elastic_training", options.elastic,
               "restart without machines that cannot be reached (implies --max_restarts 100)");
  app.add_option("--min_elastic_nodes", raw.min_nodes, "machines that elastic training needs (default: 1)");
  app.add_option("--max_elastic_nodes", options.max_nodes, "machines that elastic training takes (default: all)");
  app.add_option("--autotuning", raw.autotuning, "not built yet");
  app.add_option("--world_info", options.world_info,
                 "base64 of {\"host\": [slots]} instead of a hostfile, with --no_ssh");
  app.add_option("--agent", options.agent_ticket)->group("");
  app.add_option("--agent_index", options.agent_index)->group("");
  app.add_option("--agent_token", options.agent_token)->group("");
}

std::vector<std::string> long_option_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

/// Index of the script: the first argument that is neither an option nor an option's value.
size_t find_script(const CLI::App& app, const std::vector<std::string>& arguments) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    if (argument.size() < 2 || argument[0] != '-') return i;
    const size_t equals = argument.find('=');
    const bool is_long = argument.starts_with("--");
    const std::string name = is_long ? argument.substr(0, equals) : argument.substr(0, 2);
    const CLI::Option* option = app.get_option_no_throw(name);
    if (option == nullptr) {
      const std::vector<std::string> known = long_option_names(app);
      const std::string_view near = nearest_name(name, known);
      ds_throw<ConfigError>("unknown launcher option \"{}\"{}; options of the script belong after the script", name,
                            near.empty() ? "" : fmt::format(" (did you mean {}?)", near));
    }
    const bool value_attached = is_long ? equals != std::string::npos : argument.size() > 2;
    if (option->get_items_expected_max() > 0 && !value_attached) ++i;
  }
  return arguments.size();
}

void check_consistent(const CLI::App& app, const RawOptions& raw) {
  const LauncherOptions& options = raw.options;
  const auto given = [&](const char* name) { return app.count(name) > 0; };
  DS_CHECK_AS(ConfigError, options.include.empty() || options.exclude.empty(),
              "--include and --exclude contradict each other: give one of them");
  const bool filtered = !options.include.empty() || !options.exclude.empty();
  DS_CHECK_AS(
      ConfigError, !filtered || (options.num_nodes == -1 && options.ranks_per_node == -1),
      "--include/--exclude cannot be combined with --num_nodes/--num_gpus: the filter already says which ranks");
  DS_CHECK_AS(ConfigError, options.ranks_per_node >= 1 || options.ranks_per_node == -1,
              "--num_gpus must be at least 1 (or -1 for all), found {}", options.ranks_per_node);
  DS_CHECK_AS(ConfigError, options.num_nodes >= 1 || options.num_nodes == -1,
              "--num_nodes must be at least 1 (or -1 for all), found {}", options.num_nodes);
  DS_CHECK_AS(ConfigError, !given("--master_port") || (raw.master_port >= 1 && raw.master_port <= 65535),
              "--master_port must be 1..65535, found {}", raw.master_port);
  DS_CHECK_AS(ConfigError, !(options.module && options.no_python),
              "--module and --no_python contradict each other: a module needs Python");
  DS_CHECK_AS(ConfigError, !(raw.quiet && (raw.verbose || given("--log_level"))),
              "--quiet contradicts --verbose and --log_level: give one of them");
  DS_CHECK_AS(ConfigError,
              !given("--log_dir") || !given("--enable_each_rank_log") || options.log_dir == raw.rank_log_dir,
              "--log_dir and --enable_each_rank_log are the same option and name different directories");
}

void check_multi_node(const CLI::App& app, const RawOptions& raw) {
  const LauncherOptions& options = raw.options;
  const auto given = [&](const char* name) { return app.count(name) > 0; };
  DS_CHECK_AS(UnsupportedError, !given("--autotuning"), "autotuning: not built yet (--autotuning)");
  DS_CHECK_AS(ConfigError, !given("--ssh_port") || (raw.ssh_port >= 1 && raw.ssh_port <= 65535),
              "--ssh_port must be 1..65535, found {}", raw.ssh_port);
  DS_CHECK_AS(ConfigError, options.max_restarts >= 0, "--max_restarts must be at least 0, found {}",
              options.max_restarts);
  DS_CHECK_AS(ConfigError, options.elastic || (!given("--min_elastic_nodes") && !given("--max_elastic_nodes")),
              "--min_elastic_nodes and --max_elastic_nodes belong to --elastic_training, which was not given");
  DS_CHECK_AS(ConfigError, options.max_nodes == -1 || (options.max_nodes >= 1 && options.max_nodes >= raw.min_nodes),
              "--max_elastic_nodes must be at least 1 and at least --min_elastic_nodes, found {}", options.max_nodes);
  DS_CHECK_AS(ConfigError, raw.min_nodes == -1 || raw.min_nodes >= 1,
              "--min_elastic_nodes must be at least 1, found {}", raw.min_nodes);
  DS_CHECK_AS(ConfigError, options.no_ssh == given("--node_rank"),
              "--no_ssh and --node_rank belong together: --no_ssh --node_rank N starts the ranks of machine N");
  DS_CHECK_AS(ConfigError, !options.no_ssh || options.node_rank >= 0, "--node_rank must be at least 0, found {}",
              options.node_rank);
  DS_CHECK_AS(ConfigError, !options.no_ssh || !options.master_addr.empty(),
              "--no_ssh needs --master_addr: the address of machine 0, which every machine can reach");
  DS_CHECK_AS(ConfigError, !(options.no_ssh && options.force_multi),
              "--no_ssh and --force_multi contradict each other: give one of them");
  DS_CHECK_AS(ConfigError, !(options.force_multi && raw.launcher == "local"),
              "--force_multi and --launcher local contradict each other: give one of them");
  DS_CHECK_AS(ConfigError, !given("--world_info") || (options.no_ssh && !given("--hostfile")),
              "--world_info belongs to --no_ssh, and takes the place of --hostfile");
  if (given("--world_info")) parse_world_info(options.world_info);
  split_shell_words(options.launcher_args, "--launcher_args");
}

std::optional<Backend> chosen_backend(std::string name) {
  for (char& letter : name) {
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
  }
  // "standard" is what Accelerate calls a start without pdsh.
  if (name.empty() || name == "standard") return std::nullopt;
  std::vector<std::string> names;
  for (const Backend backend : kBackends) {
    if (name == backend_name(backend)) return backend;
    names.emplace_back(backend_name(backend));
  }
  ds_throw<ConfigError>("--launcher must be one of {}, found \"{}\"", fmt::join(names, ", "), name);
}

LogLevel chosen_level(const RawOptions& raw) {
  if (raw.quiet) return LogLevel::kError;
  return raw.verbose ? LogLevel::kDebug : Logger::parse_level(raw.log_level);
}

}  // namespace

const char* backend_name(Backend backend) {
  switch (backend) {
    case Backend::kLocal:
      return "local";
    case Backend::kSsh:
      return "ssh";
    case Backend::kPdsh:
      return "pdsh";
    case Backend::kOpenMpi:
      return "openmpi";
    case Backend::kMpich:
      return "mpich";
    case Backend::kImpi:
      return "impi";
    case Backend::kMvapich:
      return "mvapich";
    case Backend::kSlurm:
      return "slurm";
  }
  return "";
}

bool starts_every_rank(Backend backend) {
  return backend != Backend::kLocal && backend != Backend::kSsh && backend != Backend::kPdsh;
}

ParsedCommandLine parse_command_line(const std::vector<std::string>& arguments) {
  RawOptions raw;
  CLI::App app(
      "Starts a script once per rank and ends all of them together:\n"
      "deepspeed [options] script [script arguments]",
      "deepspeed");
  app.set_version_flag("--version", "deepspeed " DEEPSCALE_VERSION " (DeepScale)");
  declare_local_options(app, raw);
  declare_multi_node_options(app, raw);

  std::vector<std::string> restored;
  for (const std::string& argument : arguments) restored.push_back(restore_dashes(argument));
  const size_t script = find_script(app, restored);
  // CLI11 takes the arguments last to first.
  std::vector<std::string> own(restored.rbegin() + static_cast<std::ptrdiff_t>(restored.size() - script),
                               restored.rend());
  try {
    app.parse(own);
  } catch (const CLI::CallForHelp&) {
    return {{}, app.help()};
  } catch (const CLI::CallForVersion& version) {
    return {{}, std::string(version.what()) + "\n"};
  } catch (const CLI::ConversionError& error) {
    // "Could not convert: --num_gpus = x"
    const std::string text = error.what();
    const size_t name = text.find("--");
    ds_throw<ConfigError>("{}: not a value of this option's type (deepspeed --help)",
                          name == std::string::npos ? text : text.substr(name));
  } catch (const CLI::ParseError& error) {
    ds_throw<ConfigError>("{}", error.what());
  }
  check_consistent(app, raw);
  check_multi_node(app, raw);
  LauncherOptions& options = raw.options;
  options.backend = chosen_backend(raw.launcher);
  if (app.count("--ssh_port") > 0) options.ssh_port = raw.ssh_port;
  options.min_nodes = std::max(1, raw.min_nodes);
  if (options.elastic && app.count("--max_restarts") == 0) options.max_restarts = kElasticRestarts;
  options.log_level = chosen_level(raw);
  if (app.count("--master_port") > 0) options.master_port = raw.master_port;
  if (options.log_dir.empty()) options.log_dir = raw.rank_log_dir;
  if (!options.bind_core_list.empty()) {
    parse_core_list(options.bind_core_list);
    options.bind_cores = true;
  }
  if (!options.agent_ticket.empty()) return {std::move(options), std::nullopt};
  DS_CHECK_AS(ConfigError, script < restored.size(),
              "no script to run; usage: deepspeed [options] script [script arguments] (deepspeed --help)");
  options.script = restored[script];
  options.script_arguments.assign(restored.begin() + static_cast<std::ptrdiff_t>(script) + 1, restored.end());
  return {std::move(options), std::nullopt};
}

std::string restore_dashes(const std::string& argument) {
  constexpr std::string_view kEnDash = "\xE2\x80\x93";
  if (!argument.starts_with(kEnDash)) return argument;
  const std::string name = argument.substr(kEnDash.size());
  return (name.size() == 1 ? "-" : "--") + name;
}

std::vector<int> parse_core_list(const std::string& text) {
  const std::optional<std::vector<int>> cores = parse_cpu_list(text);
  DS_CHECK_AS(ConfigError, cores && !cores->empty(),
              "--bind_core_list: \"{}\" is no list of core numbers; expected ascending cores like 0,2-4,6", text);
  DS_CHECK_AS(ConfigError, std::adjacent_find(cores->begin(), cores->end(), std::greater_equal<>()) == cores->end(),
              "--bind_core_list: \"{}\" is not ascending; expected cores like 0,2-4,6", text);
  return *cores;
}

}  // namespace deepscale
