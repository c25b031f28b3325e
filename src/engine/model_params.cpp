#include "engine/model_params.h"

#include <algorithm>
#include <set>

#include "base/error.h"

namespace deepscale {
namespace {

/// Dotted name of every unit, in the order in which they are listed.
std::vector<std::string> unit_names(const torch::nn::Module& model, const std::vector<AnyUnit>& units) {
  std::map<const torch::nn::Module*, std::string> names;
  for (const auto& entry : model.named_modules(std::string(), /*include_self=*/false)) {
    names.emplace(entry.value().get(), entry.key());
  }
  std::vector<std::string> found;
  for (const AnyUnit& unit : units) {
    const std::string type = unit.module() == nullptr ? "an empty module" : unit.module()->name();
    const auto at = names.find(unit.module().get());
    DS_CHECK_AS(ConfigError, at != names.end(),
                "a unit holds {}, which is not registered in the model: register_module() it and wrap the same pointer",
                type);
    DS_CHECK_AS(ConfigError, std::find(found.begin(), found.end(), at->second) == found.end(),
                "unit {} is listed twice in InitializeOptions::units", at->second);
    DS_CHECK_AS(ConfigError, !unit.attached(), "unit {} belongs to another engine: end that one first", at->second);
    found.push_back(at->second);
  }
  return found;
}

int innermost(const std::string& parameter, const std::vector<std::string>& units) {
  int best = -1;
  for (size_t u = 0; u < units.size(); ++u) {
    const std::string prefix = units[u] + ".";
    if (parameter.rfind(prefix, 0) != 0) continue;
    if (best < 0 || units[u].size() > units[best].size()) best = static_cast<int>(u);
  }
  return best;
}

void list_entries(const torch::nn::Module& model, ModelParams& made) {
  for (const auto& part : model.named_modules()) {
    const std::string prefix = part.key().empty() ? "" : part.key() + ".";
    for (const auto& param : part.value()->named_parameters(/*recurse=*/false)) {
      made.entries.push_back({prefix + param.key(), made.index_of(prefix + param.key()), {}});
    }
    for (const auto& buffer : part.value()->named_buffers(/*recurse=*/false)) {
      if (buffer.value().defined()) made.entries.push_back({prefix + buffer.key(), -1, buffer.value()});
    }
  }
}

}  // namespace

int ModelParams::index_of(const std::string& name) const {
  const auto alias = std::find_if(aliases.begin(), aliases.end(), [&](const auto& pair) { return pair.first == name; });
  const std::string& wanted = alias == aliases.end() ? name : alias->second;
  const auto found = std::find_if(params.begin(), params.end(), [&](const Param& p) { return p.name == wanted; });
  return found == params.end() ? -1 : static_cast<int>(found - params.begin());
}

ModelParams inspect_model(const torch::nn::Module& model, const std::vector<AnyUnit>& units) {
  const std::vector<std::string> names = unit_names(model, units);
  ModelParams made;
  for (const auto& name : names) made.units.push_back({name, {}});
  std::map<const at::TensorImpl*, int> known;
  std::set<int> used_outside;
  for (const auto& entry : model.named_parameters()) {
    const int unit = innermost(entry.key(), names);
    const auto [place, fresh] =
        known.emplace(entry.value().unsafeGetTensorImpl(), static_cast<int>(made.params.size()));
    if (fresh) {
      made.params.push_back({entry.key(), entry.value(), entry.value().sizes().vec(), unit});
    } else {
      made.aliases.emplace_back(entry.key(), made.params[place->second].name);
    }
    if (unit < 0) {
      used_outside.insert(place->second);
      continue;
    }
    auto& part = made.units[unit].params;
    if (std::find(part.begin(), part.end(), place->second) == part.end()) part.push_back(place->second);
  }
  for (const int index : used_outside) made.params[index].unit = -1;
  list_entries(model, made);
  return made;
}

}  // namespace deepscale
