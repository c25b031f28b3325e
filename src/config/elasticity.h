// Elastic training: one train_batch_size that many numbers of ranks can share, so that a run may shrink and grow
// without a change of its mathematics. The rules have two versions, which DeepSpeed calls 0.1 and 0.2:
// - 0.1 takes as bases the micro-batch sizes and their least common multiple, multiplies each by the largest highly
//   composite number that keeps it within max_train_batch_size, and chooses the product that the most numbers of ranks
//   divide.
// - 0.2 does the same for whole machines of num_gpus_per_node ranks, of which model_parallel_size share one model. When
//   the current number of ranks is none of the result, the batch is the largest that fits this number alone.
// "Ranks" are data-parallel ranks everywhere below: all ranks / model_parallel_size.
// Pure, except for the functions that name an environment variable.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "config/json_text.h"
#include "config/problems.h"
#include "deepscale/options.h"

namespace deepscale::config {

inline constexpr double kLatestElasticityVersion = 0.2;

struct ElasticBatch {
  int64_t train_batch_size = 0;
  std::vector<int64_t> valid_sizes;  ///< numbers of ranks that can run it, ascending
};

/// The batch size and its numbers of ranks. `data_parallel_size`: the current one; version 0.2 needs it.
/// Throws ElasticityConfigError for settings that allow no batch, ElasticityError when machines cannot be divided into
/// models, ElasticityIncompatibleWorldSize when not even one smallest micro-batch per rank fits (version 0.2).
ElasticBatch elastic_batch(const ElasticityOptions& options, std::optional<int64_t> data_parallel_size);

/// The largest micro-batch size with which `data_parallel_size` ranks make up the batch.
/// Throws ElasticityIncompatibleWorldSize when the batch is not for that number.
int64_t elastic_micro_batch(const ElasticityOptions& options, const ElasticBatch& batch, int64_t data_parallel_size);

/// As elastic_micro_batch, but without prefer_larger_batch the first fitting size of the list; nothing when none fits.
std::optional<int64_t> preferred_micro_batch(const ElasticityOptions& options, const ElasticBatch& batch,
                                             int64_t data_parallel_size);

/// Whether the configuration has elasticity switched on.
bool elasticity_enabled(const Json& configuration);

/// Reads the section of a configuration that has it switched on.
/// Throws ElasticityConfigError: it is missing, off, lacks a necessary key, or has unusable values.
ElasticityOptions read_elasticity(const Json& configuration);

/// Data-parallel ranks as WORLD_SIZE says. Throws ElasticityConfigError when it is unset or unusable.
int64_t environment_data_parallel_size(const ElasticityOptions& options);

/// The scheduler that started the run passes the section it used as DEEPSPEED_ELASTICITY_CONFIG.
/// Throws ElasticityConfigError when that differs in batch size, micro-batch sizes or version; unset is fine.
void check_scheduler_elasticity(const ElasticityOptions& options);

/// Fills the three batch sizes of a configuration that has elasticity switched on. Sizes that stand there already must
/// be the same, or be ignored by ignore_non_elastic_batch_info (a warning). Throws the errors above.
void resolve_elasticity(Options& options, const Json& given, int data_parallel_size, Problems& problems);

}  // namespace deepscale::config
