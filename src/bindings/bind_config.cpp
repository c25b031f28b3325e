// Configuration for Python: text in, resolved JSON and warnings out.
#include "bindings/bindings.h"
#include "config/elasticity.h"
#include "deepscale/config.h"

namespace deepscale {
namespace {

using Resolved = std::pair<std::string, std::vector<std::string>>;

Resolved resolved(const Config& config) {
  return {config.to_json(), config.warnings()};
}

ParseMode mode_of(bool check_batch) {
  return check_batch ? ParseMode::kTraining : ParseMode::kZeroInit;
}

using ElasticAnswer = std::tuple<int64_t, std::vector<int64_t>, std::optional<int64_t>>;

// What DeepSpeed's compute_elastic_config answers: with a number of ranks its largest micro-batch; without one the
// environment is asked where the rules or the wish for a micro-batch need it.
ElasticAnswer elastic_answer(const std::string& json_text, int64_t world_size, bool want_micro_batch) {
  const config::Json configuration = config::parse_json_text(json_text);
  const ElasticityOptions options = config::read_elasticity(configuration);
  const bool by_machines = options.version > 0.1;
  const bool given = world_size > 0;
  const int64_t ranks = given                             ? world_size
                        : by_machines || want_micro_batch ? config::environment_data_parallel_size(options)
                                                          : 0;
  config::ElasticBatch batch = config::elastic_batch(options, ranks);
  std::optional<int64_t> micro_batch;
  if (given || (want_micro_batch && !by_machines)) {
    micro_batch = config::elastic_micro_batch(options, batch, ranks);
  } else if (want_micro_batch) {
    micro_batch = config::preferred_micro_batch(options, batch, ranks);
  }
  return {batch.train_batch_size, std::move(batch.valid_sizes), micro_batch};
}

}  // namespace

void register_config(py::module_& m) {
  m.def(
      "parse_config",
      [](const std::string& json_text, int world_size, bool check_batch) {
        return resolved(Config::parse(json_text, world_size, mode_of(check_batch)));
      },
      py::arg("json_text"), py::arg("world_size"), py::arg("check_batch") = true);
  m.def(
      "parse_config_file",
      [](const std::string& path, int world_size, bool check_batch) {
        return resolved(Config::open(path, world_size, mode_of(check_batch)));
      },
      py::arg("path"), py::arg("world_size"), py::arg("check_batch") = true);
  m.def("elastic_batch", elastic_answer, py::arg("json_text"), py::arg("world_size") = 0,
        py::arg("want_micro_batch") = false);
  m.def(
      "check_scheduler_elasticity",
      [](const std::string& json_text) {
        config::check_scheduler_elasticity(config::read_elasticity(config::parse_json_text(json_text)));
      },
      py::arg("json_text"));
}

}  // namespace deepscale
