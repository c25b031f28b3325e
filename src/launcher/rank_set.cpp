#include "launcher/rank_set.h"

#include <ctime>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "launcher/python.h"
#include "platform/machine.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;

}  // namespace

std::string prepare_logs(const LauncherOptions& options, int first_rank) {
  const std::string& directory = options.log_dir;
  if (directory.empty()) return {};
  std::error_code error;
  fs::create_directories(directory, error);
  DS_CHECK_AS(IoError, !error, "cannot make the log directory {}: {}", directory, error.message());
  char stamp[32] = {};
  const std::time_t now = std::time(nullptr);
  std::strftime(stamp, sizeof(stamp), "%Y%m%d%H%M%S", std::localtime(&now));
  std::string prefix = fmt::format("{}/{}_rank", directory, stamp);
  const std::string first = fmt::format("{}{}.log", prefix, first_rank);
  DS_CHECK_AS(IoError, std::ofstream(first, std::ios::app).good(), "cannot write the log file {}: no permission?",
              first);
  return prefix;
}

void check_script(const LauncherOptions& options) {
  DS_CHECK_AS(ConfigError, options.venv_script.empty() || is_readable(options.venv_script),
              "--venv_script: {} cannot be read on host {}", options.venv_script, host_name());
  if (options.module || options.no_python) return;
  DS_CHECK_AS(ConfigError, fs::exists(options.script), "there is no script \"{}\"", options.script);
  DS_CHECK_AS(ConfigError, is_readable(options.script), "the script \"{}\" cannot be read: no permission",
              options.script);
}

std::string python_for_ranks(const LauncherOptions& options) {
  if (options.no_python) return {};
  const auto found = find_python();
  DS_CHECK_AS(IoError, found.has_value(), "no Python interpreter beside this program or in PATH; set DEEPSCALE_PYTHON");
  return *found;
}

std::vector<RankLaunch> make_rank_set(const LauncherOptions& options, const RankSettings& settings,
                                      const RankPlace& first, int count, const std::string& logs,
                                      const MachineFacts& facts) {
  std::vector<RankLaunch> ranks;
  for (int index = 0; index < count; ++index) {
    RankPlace place = first;
    place.rank += index;
    place.local_rank += index;
    RankLaunch launch{place.rank, place.local_rank, rank_process(options, settings, place, facts)};
    if (!logs.empty()) launch.process.output_file = fmt::format("{}{}.log", logs, launch.rank);
    // A single rank keeps the launcher's own standard error, so that it is in every way a program run by hand.
    launch.process.keep_error_tail = place.world_size > 1;
    ranks.push_back(std::move(launch));
  }
  return ranks;
}

}  // namespace deepscale
