// What follows from the options as they were read: batch sizes, defaults that depend on other options, contradictions,
// and features that do not exist yet. All functions collect problems; none throws.
#pragma once

#include <string_view>
#include <vector>

#include "config/problems.h"
#include "deepscale/config.h"

namespace deepscale::config {

/// train_batch_size = train_micro_batch_size_per_gpu * gradient_accumulation_steps * data_parallel_size: fills what is
/// missing and checks the rest.
void resolve_batch(Options& options, int data_parallel_size, Problems& problems);

/// Defaults that depend on other options, such as overlap_comm; leaves no "auto" in optimizer and scheduler parameters.
void resolve_defaults(Options& options, ParseMode mode, Problems& problems);

/// Options that contradict each other.
void check_options(const Options& options, int data_parallel_size, Problems& problems);

/// Features that are switched on and do not exist yet.
void check_not_built(const Options& options, Problems& problems);

struct NotBuilt {
  std::string_view path;    ///< of the switch
  std::string_view remedy;  ///< what to write instead
  bool (*switched_on)(const Options& options);
};

/// The one list of features that do not exist yet: a feature that is built loses its row.
const std::vector<NotBuilt>& not_built();

}  // namespace deepscale::config
