#include "config/elasticity.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <string>

#include "base/environment.h"
#include "base/error.h"
#include "config/codec.h"

namespace deepscale::config {
namespace {

constexpr const char* kSchedulerVariable = "DEEPSPEED_ELASTICITY_CONFIG";
// Divisors are found by trial up to the square root: this bounds the time to milliseconds.
constexpr int64_t kMaxBatch = int64_t{1} << 40;

// Highly composite numbers (OEIS A002182) up to 720720: more divisors than any smaller number.
constexpr int64_t kHighlyComposite[] = {1,      2,      4,      6,      12,     24,     36,     48,    60,    120,
                                        180,    240,    360,    720,    840,    1260,   1680,   2520,  5040,  7560,
                                        10080,  15120,  20160,  25200,  27720,  45360,  50400,  55440, 83160, 110880,
                                        166320, 221760, 277200, 332640, 498960, 554400, 665280, 720720};

struct Range {
  int64_t least;
  int64_t most;
  bool holds(int64_t value) const { return least <= value && value <= most; }
};

// The least common multiple, or nothing when it is above `limit`.
std::optional<int64_t> common_multiple(const std::vector<int64_t>& values, int64_t limit) {
  int64_t multiple = 1;
  for (const int64_t value : values) {
    const int64_t factor = value / std::gcd(multiple, value);
    if (multiple > limit / factor) return std::nullopt;
    multiple *= factor;
  }
  return multiple;
}

std::set<int64_t> candidate_batches(const std::vector<int64_t>& micro_batches, int64_t max_batch) {
  std::vector<int64_t> bases = micro_batches;
  if (const auto multiple = common_multiple(micro_batches, max_batch)) bases.push_back(*multiple);
  std::set<int64_t> batches;
  for (const int64_t base : bases) {
    const auto* above = std::upper_bound(std::begin(kHighlyComposite), std::end(kHighlyComposite), max_batch / base);
    batches.insert(base * above[-1]);
  }
  return batches;
}

void add_divisors(int64_t number, const Range& allowed, std::set<int64_t>& divisors) {
  for (int64_t small = 1; small <= allowed.most && small * small <= number; ++small) {
    if (number % small != 0) continue;
    for (const int64_t divisor : {small, number / small}) {
      if (allowed.holds(divisor)) divisors.insert(divisor);
    }
  }
}

std::set<int64_t> sizes_for(int64_t batch, const std::vector<int64_t>& micro_batches, const Range& allowed) {
  std::set<int64_t> sizes;
  for (const int64_t micro : micro_batches) {
    if (batch % micro == 0) add_divisors(batch / micro, allowed, sizes);
  }
  return sizes;
}

// Version 0.1, over ranks or (for version 0.2) over machines. A bound of 0 means none. No valid sizes: nothing fits.
ElasticBatch most_elastic_batch(const ElasticityOptions& options, int64_t max_batch, const Range& bounds) {
  const auto& micro_batches = options.micro_batch_sizes;
  const auto [smallest, largest] = std::minmax_element(micro_batches.begin(), micro_batches.end());
  DS_CHECK_AS(ElasticityConfigError, *largest <= max_batch,
              "elasticity.micro_batch_sizes: {} is more than max_train_batch_size allows ({}{}); remove it or raise "
              "elasticity.max_train_batch_size",
              *largest, max_batch, max_batch == options.max_train_batch_size ? "" : " for one rank of each machine");
  const Range allowed{bounds.least > 0 ? bounds.least : 1, bounds.most > 0 ? bounds.most : max_batch / *smallest};
  ElasticBatch best;
  for (const int64_t batch : candidate_batches(micro_batches, max_batch)) {  // ascending
    const std::set<int64_t> sizes = sizes_for(batch, micro_batches, allowed);
    const bool more = sizes.size() > best.valid_sizes.size();
    const bool as_many = sizes.size() == best.valid_sizes.size();
    if (!more && !(as_many && options.prefer_larger_batch)) continue;
    best = {batch, {sizes.begin(), sizes.end()}};
  }
  return best;
}

// Version 0.2 for a number of ranks that the most elastic batch does not serve.
ElasticBatch batch_for_one_size(const ElasticityOptions& options, int64_t ranks) {
  std::set<int64_t> batches;
  for (const int64_t micro : options.micro_batch_sizes) {
    const int64_t step = micro > kMaxBatch / ranks ? kMaxBatch + 1 : micro * ranks;
    if (step <= options.max_train_batch_size) batches.insert(options.max_train_batch_size / step * step);
  }
  DS_CHECK_AS(ElasticityIncompatibleWorldSize, !batches.empty(),
              "elasticity: {} data-parallel ranks with the smallest micro-batch of {} are more than "
              "elasticity.max_train_batch_size ({}); use fewer ranks or raise it",
              ranks, options.micro_batch_sizes, options.max_train_batch_size);
  return {options.prefer_larger_batch ? *batches.rbegin() : *batches.begin(), {ranks}};
}

ElasticBatch batch_by_machines(const ElasticityOptions& options, int64_t ranks) {
  DS_CHECK_AS(ElasticityError, options.num_gpus_per_node % options.model_parallel_size == 0,
              "elasticity.num_gpus_per_node ({}) must be a multiple of elasticity.model_parallel_size ({})",
              options.num_gpus_per_node, options.model_parallel_size);
  const int64_t ranks_per_machine = options.num_gpus_per_node / options.model_parallel_size;
  const Range machines{options.min_gpus / options.num_gpus_per_node, options.max_gpus / options.num_gpus_per_node};
  ElasticBatch batch = most_elastic_batch(options, options.max_train_batch_size / ranks_per_machine, machines);
  batch.train_batch_size *= ranks_per_machine;
  for (int64_t& size : batch.valid_sizes) size *= ranks_per_machine;
  return std::binary_search(batch.valid_sizes.begin(), batch.valid_sizes.end(), ranks)
             ? batch
             : batch_for_one_size(options, ranks);
}

bool is_version(const ElasticityOptions& options, double version) {
  return std::abs(options.version - version) < 1e-9;
}

void check_settings(const ElasticityOptions& options) {
  DS_CHECK_AS(ElasticityConfigError, !options.micro_batch_sizes.empty(),
              "elasticity.micro_batch_sizes is empty; list the micro-batch sizes to choose from");
  DS_CHECK_AS(ElasticityConfigError, options.min_gpus <= options.max_gpus,
              "elasticity.min_gpus ({}) must not be greater than elasticity.max_gpus ({})", options.min_gpus,
              options.max_gpus);
  DS_CHECK_AS(ElasticityConfigError, options.max_train_batch_size <= kMaxBatch,
              "elasticity.max_train_batch_size is {}; at most {} is supported", options.max_train_batch_size,
              kMaxBatch);
  DS_CHECK_AS(ElasticityConfigError, is_version(options, 0.1) || is_version(options, 0.2),
              "elasticity.version {} is unknown; versions 0.1 and {} exist", options.version, kLatestElasticityVersion);
  DS_CHECK_AS(ElasticityConfigError, options.model_parallel_size == 1 || is_version(options, 0.2),
              "elasticity.model_parallel_size is {}, which version {} cannot do; set elasticity.version to {}",
              options.model_parallel_size, options.version, kLatestElasticityVersion);
}

}  // namespace

ElasticBatch elastic_batch(const ElasticityOptions& options, std::optional<int64_t> data_parallel_size) {
  check_settings(options);
  if (is_version(options, 0.1)) {
    ElasticBatch best = most_elastic_batch(options, options.max_train_batch_size, {options.min_gpus, options.max_gpus});
    DS_CHECK_AS(ElasticityConfigError, !best.valid_sizes.empty(),
                "elasticity: no batch up to {} with micro-batches {} divides among {} to {} ranks; widen "
                "elasticity.min_gpus and max_gpus or raise elasticity.max_train_batch_size",
                options.max_train_batch_size, options.micro_batch_sizes, options.min_gpus, options.max_gpus);
    return best;
  }
  DS_CHECK_AS(ElasticityConfigError, data_parallel_size.value_or(0) >= 1,
              "elasticity.version {} needs the number of ranks to choose a batch; give it, or set WORLD_SIZE",
              options.version);
  return batch_by_machines(options, *data_parallel_size);
}

std::optional<int64_t> preferred_micro_batch(const ElasticityOptions& options, const ElasticBatch& batch,
                                             int64_t data_parallel_size) {
  std::optional<int64_t> chosen;
  for (const int64_t micro : options.micro_batch_sizes) {
    if (batch.train_batch_size / data_parallel_size % micro != 0) continue;
    if (!chosen || (options.prefer_larger_batch && micro > *chosen)) chosen = micro;
  }
  return chosen;
}

int64_t elastic_micro_batch(const ElasticityOptions& options, const ElasticBatch& batch, int64_t data_parallel_size) {
  const bool valid = std::binary_search(batch.valid_sizes.begin(), batch.valid_sizes.end(), data_parallel_size);
  ElasticityOptions larger = options;
  larger.prefer_larger_batch = true;
  const auto micro = valid ? preferred_micro_batch(larger, batch, data_parallel_size) : std::nullopt;
  DS_CHECK_AS(ElasticityIncompatibleWorldSize, micro.has_value(),
              "elasticity: {} data-parallel ranks cannot share the batch of {}; start with one of these numbers: {}",
              data_parallel_size, batch.train_batch_size, batch.valid_sizes);
  return *micro;
}

bool elasticity_enabled(const Json& configuration) {
  const auto section = configuration.find("elasticity");
  if (section == configuration.end() || !section->is_object()) return false;
  const auto enabled = section->find("enabled");
  if (enabled == section->end()) return false;
  Problems unusable_values_are_reported_elsewhere;
  return read_boolean(*enabled, "elasticity.enabled", unusable_values_are_reported_elsewhere).value_or(false);
}

ElasticityOptions read_elasticity(const Json& configuration) {
  const auto section = configuration.find("elasticity");
  DS_CHECK_AS(ElasticityConfigError, section != configuration.end() && section->is_object(),
              "the configuration has no section 'elasticity'; add one for elastic training");
  DS_CHECK_AS(ElasticityConfigError, elasticity_enabled(configuration),
              "elasticity.enabled is not true; set it for elastic training");
  for (const char* key : {"max_train_batch_size", "micro_batch_sizes"}) {
    DS_CHECK_AS(ElasticityConfigError, section->contains(key), "elasticity.{} is missing; elastic training needs it",
                key);
  }
  ElasticityOptions options;
  Problems problems;
  read_section(table_of(&options), *section, &options, "elasticity", {problems});
  try {
    problems.throw_if_any();
  } catch (const ConfigError& error) {
    throw ElasticityConfigError(error.what());
  }
  check_settings(options);
  return options;
}

int64_t environment_data_parallel_size(const ElasticityOptions& options) {
  const std::string text = environment("WORLD_SIZE").value_or("");
  const bool number =
      !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos && text != "0";
  DS_CHECK_AS(ElasticityConfigError, number,
              "elasticity.version {} needs the number of ranks to choose a batch; give it, or set the environment "
              "variable WORLD_SIZE (found \"{}\")",
              options.version, text);
  const int64_t ranks = std::stoll(text);
  DS_CHECK_AS(ElasticityIncompatibleWorldSize, ranks % options.model_parallel_size == 0,
              "environment variable WORLD_SIZE ({}) is not a multiple of elasticity.model_parallel_size ({})", ranks,
              options.model_parallel_size);
  return ranks / options.model_parallel_size;
}

void check_scheduler_elasticity(const ElasticityOptions& options) {
  const auto text = environment(kSchedulerVariable);
  if (!text) return;
  ElasticityOptions scheduled;
  Problems problems;
  try {
    const Json section = parse_json_text(*text);
    DS_CHECK_AS(ConfigError, section.is_object(), "must be an object, found {}", show(section));
    read_section(table_of(&scheduled), section, &scheduled, "elasticity", {problems});
    problems.throw_if_any();
  } catch (const ConfigError& error) {
    ds_throw<ElasticityConfigError>("environment variable {} cannot be used: {}", kSchedulerVariable, error.what());
  }
  const auto compare = [](const char* key, const auto& theirs, const auto& ours) {
    DS_CHECK_AS(ElasticityConfigError, theirs == ours,
                "elasticity.{} is {} here, but {} in the environment variable {} that the scheduler set; start the run "
                "with the configuration that the scheduler saw",
                key, ours, theirs, kSchedulerVariable);
  };
  compare("max_train_batch_size", scheduled.max_train_batch_size, options.max_train_batch_size);
  compare("micro_batch_sizes", scheduled.micro_batch_sizes, options.micro_batch_sizes);
  compare("version", scheduled.version, options.version);
}

void resolve_elasticity(Options& options, const Json& given, int data_parallel_size, Problems& problems) {
  if (!elasticity_enabled(given)) return;
  const ElasticityOptions elasticity = read_elasticity(given);
  check_scheduler_elasticity(elasticity);
  const ElasticBatch batch = elastic_batch(elasticity, data_parallel_size);
  const int64_t micro = elastic_micro_batch(elasticity, batch, data_parallel_size);
  const auto settle = [&](std::string_view key, std::optional<int64_t>& value, int64_t elastic) {
    if (value && *value != elastic) {
      DS_CHECK_AS(ElasticityConfigError, elasticity.ignore_non_elastic_batch_info,
                  "{}: is {}, but elastic training determines it ({} for {} data-parallel ranks); remove it, or set "
                  "elasticity.ignore_non_elastic_batch_info to true",
                  key, *value, elastic, data_parallel_size);
      problems.warn(key, fmt::format("{} is ignored: elastic training determines {}", *value, elastic));
    }
    value = elastic;
  };
  settle("train_batch_size", options.train_batch_size, batch.train_batch_size);
  settle("train_micro_batch_size_per_gpu", options.train_micro_batch_size_per_gpu, micro);
  settle("gradient_accumulation_steps", options.gradient_accumulation_steps,
         batch.train_batch_size / (micro * data_parallel_size));
}

}  // namespace deepscale::config
