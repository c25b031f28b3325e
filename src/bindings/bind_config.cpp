// Configuration for Python: text in, resolved JSON and warnings out.
#include "bindings/bindings.h"
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
}

}  // namespace deepscale
