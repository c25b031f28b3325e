// Ranks of one machine, ready to start: shared by local runs and agents.
#pragma once

#include <string>
#include <vector>

#include "launcher/launch_plan.h"
#include "launcher/supervise.h"

namespace deepscale {

/// Throws ConfigError when the script does not exist or cannot be read.
void check_script(const LauncherOptions& options);

/// Makes the directory of --log_dir and its first file. Returns "<directory>/<YYYYmmddHHMMSS>_rank", to which the rank
/// and ".log" are added; empty without --log_dir. Throws IoError.
std::string prepare_logs(const LauncherOptions& options, int first_rank);

/// `count` ranks from `first` on. `logs` is what prepare_logs returned.
std::vector<RankLaunch> make_rank_set(const LauncherOptions& options, const RankSettings& settings,
                                      const RankPlace& first, int count, const std::string& logs,
                                      const MachineFacts& facts);

/// The interpreter that ranks run with; empty with --no_python. Throws IoError when there is none.
std::string python_for_ranks(const LauncherOptions& options);

}  // namespace deepscale
