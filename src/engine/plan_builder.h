// From a configuration, a model's shapes and the ranks of a run to its memory plan: the engine's decisions (units,
// buckets, shards, buffers) made again with sizes alone, by the same code where it is pure (ShardLayout,
// ShardingSizes, plan_sizes.h).
//
//   const Config config = Config::from_file("ds_config.json", world.ranks, ParseMode::kZeroInit);
//   const MemoryPlan plan = make_memory_plan(config, read_model_shapes("Llama-2-7b-hf"), world);
// Torch-free. Threads: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "deepscale/config.h"
#include "engine/model_shapes.h"
#include "memory/machine_limits.h"
#include "memory/memory_plan.h"

namespace deepscale {

/// What an optimizer keeps, where the configuration does not say it because the program passes one.
struct PlannedOptimizer {
  int states = 2;         ///< per trained parameter, of one element each
  bool external = false;  ///< Python computes the step: gradients in the master's dtype exist beside the others
};

/// The ranks of a run.
struct World {
  int ranks = 1;
  int ranks_per_host = 0;                     ///< 0: all
  bool accelerator = false;                   ///< parameters that are not offloaded live on a device of each rank
  bool shares_memory = true;                  ///< ranks of one host share memory where the whole run is on it (CPU)
  int64_t program_bytes = 0;                  ///< of each rank's program itself (Python, libraries), to be counted too
  bool trains = true;                         ///< false: no gradients and no optimizer
  int64_t memory_total_bytes = 0;             ///< of each rank's process; parameters in files take shares of it
  int64_t memory_available_bytes = 0;         ///< likewise; 0: not known, nothing is cut to it
  std::optional<PlannedOptimizer> optimizer;  ///< nothing: what the configuration names, else two states
};

/// Throws ConfigError for contradictions that only show with these ranks (MiCS and hpZ sizes).
MemoryPlan make_memory_plan(const Config& config, const ModelShapes& shapes, const World& world);

/// A configuration that fits where another one does not.
struct PlanAdvice {
  std::string change;  ///< "zero_optimization.offload_optimizer.device = \"cpu\"", several with ", "
  int ranks = 1;
  MemoryPlan plan;
};

/// The nearest setting that fits, in this order: optimizer on the host, parameters too, optimizer in files, parameters
/// too, smaller buffers, more ranks. Every candidate is planned and checked, so what is returned does fit. Nothing when
/// none does. nvme_path: folder for files where the configuration names none; empty: such candidates name a
/// placeholder, and the disk's room is not checked.
std::optional<PlanAdvice> nearest_fit(const Config& config, const ModelShapes& shapes, const World& world,
                                      const MachineLimits& limits, const std::string& nvme_path = "");

/// The error for a plan that does not fit: what is short and by how much, what holds most, and the nearest setting that
/// fits. Empty when the plan fits.
std::string explain_misfit(const Config& config, const ModelShapes& shapes, const World& world,
                           const MachineLimits& limits, const std::string& nvme_path = "");

}  // namespace deepscale
