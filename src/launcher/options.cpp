#include "launcher/options.h"

#include <CLI/CLI.hpp>
#include <charconv>

#include "base/error.h"

namespace deepscale {
namespace {

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
  std::string launcher = "local";
  std::string multi_node_value;
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
  app.add_option("--log_dir", options.log_dir, "write each rank's output to DIR/<time>_rank<R>.log")->type_name("DIR");
  app.add_option("--enable_each_rank_log", raw.rank_log_dir, "same as --log_dir")->type_name("DIR");
  app.add_flag("--save_pid", options.save_pid, "write /tmp/<launcher pid>.deepspeed while the run lasts");
  app.add_option("--log_level", raw.log_level, "debug, info, warning, error, critical (default: info)");
  app.add_flag("-v,--verbose", raw.verbose, "same as --log_level debug");
  app.add_flag("-q,--quiet", raw.quiet, "print errors only");
  app.add_flag("--deepspeed,--deepscale", raw.deepspeed_flag,
               "accepted; every script started here may use the library");
}

/// Options of launches over several machines and of other features that do not exist yet, with the feature's name.
struct UnbuiltOption {
  const char* names;
  const char* feature;
  bool takes_value;
};

constexpr UnbuiltOption kUnbuilt[] = {
    {"--node_rank", "multi-node", true},
    {"--launcher_args", "multi-node", true},
    {"--no_ssh", "multi-node", false},
    {"--force_multi", "multi-node", false},
    {"--ssh_port", "multi-node", true},
    {"--venv_script", "multi-node", true},
    {"--min_elastic_nodes", "elastic training", true},
    {"--max_elastic_nodes", "elastic training", true},
    {"--elastic_training", "elastic training", false},
    {"--autotuning", "autotuning", true},
};

void declare_multi_node_options(CLI::App& app, RawOptions& raw) {
  app.add_option("-H,--hostfile", raw.options.hostfile,
                 "hosts and slots of a run over several machines (not built yet)");
  app.add_option("--launcher", raw.launcher,
                 "local; pdsh, ssh, slurm, openmpi, mpich, impi, mvapich are not built yet");
  app.add_flag("--no_ssh_check", raw.no_ssh_check, "accepted; a local run uses no ssh");
  for (const UnbuiltOption& option : kUnbuilt) {
    const std::string help = fmt::format("{}: not built yet", option.feature);
    if (option.takes_value) {
      app.add_option(option.names, raw.multi_node_value, help);
    } else {
      app.add_flag(option.names, help);
    }
  }
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

void note_unbuilt(const CLI::App& app, RawOptions& raw) {
  std::vector<std::string>& not_built = raw.options.not_built;
  for (const UnbuiltOption& option : kUnbuilt) {
    if (app.count(option.names) > 0)
      not_built.push_back(fmt::format("{}: not built yet ({})", option.feature, option.names));
  }
  constexpr std::string_view kBackends[] = {"ssh", "slurm", "openmpi", "mpich", "impi", "mvapich"};
  // pdsh is the customary default and starts nothing remote when there is one machine.
  if (raw.launcher == "local" || raw.launcher == "pdsh") return;
  const bool known = std::find(std::begin(kBackends), std::end(kBackends), raw.launcher) != std::end(kBackends);
  DS_CHECK_AS(ConfigError, known,
              "--launcher must be local, pdsh, ssh, slurm, openmpi, mpich, impi or mvapich, found \"{}\"",
              raw.launcher);
  not_built.push_back(fmt::format("multi-node: not built yet (--launcher {})", raw.launcher));
}

LogLevel chosen_level(const RawOptions& raw) {
  if (raw.quiet) return LogLevel::kError;
  return raw.verbose ? LogLevel::kDebug : Logger::parse_level(raw.log_level);
}

}  // namespace

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
  } catch (const CLI::ParseError& error) {
    ds_throw<ConfigError>("{}", error.what());
  }
  check_consistent(app, raw);
  note_unbuilt(app, raw);
  LauncherOptions& options = raw.options;
  options.log_level = chosen_level(raw);
  if (app.count("--master_port") > 0) options.master_port = raw.master_port;
  if (options.log_dir.empty()) options.log_dir = raw.rank_log_dir;
  if (!options.bind_core_list.empty()) {
    parse_core_list(options.bind_core_list);
    options.bind_cores = true;
  }
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
  std::vector<int> cores;
  const auto number = [&](std::string_view part) {
    int value = -1;
    const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), value);
    DS_CHECK_AS(ConfigError, error == std::errc() && end == part.data() + part.size() && value >= 0,
                "--bind_core_list: \"{}\" in \"{}\" is not a core number; expected ascending cores like 0,2-4,6", part,
                text);
    return value;
  };
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view part = std::string_view(text).substr(begin, end - begin);
    const size_t dash = part.find('-');
    const int first = number(part.substr(0, dash));
    const int last = dash == std::string_view::npos ? first : number(part.substr(dash + 1));
    DS_CHECK_AS(ConfigError, last >= first && (cores.empty() || first > cores.back()),
                "--bind_core_list: \"{}\" in \"{}\" is not ascending; expected cores like 0,2-4,6", part, text);
    for (int core = first; core <= last; ++core) cores.push_back(core);
    begin = end + 1;
  }
  return cores;
}

}  // namespace deepscale
