// What initialize() needs to know of a module: its parameters in order, which names share a tensor, and which unit
// gathers what. Looks only; changes nothing.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

#include "deepscale/unit.h"

namespace deepscale {

struct ModelParams {
  struct Param {
    std::string name;  ///< the first of its names, in the module's order
    at::Tensor tensor;
    std::vector<int64_t> shape;  ///< also while the tensor is sharded and shows none
    int unit = -1;               ///< position of the unit that contains it first; -1: used outside units, or in none
  };
  struct Entry {
    std::string name;
    int param = -1;     ///< position in params, or -1
    at::Tensor buffer;  ///< otherwise
  };
  struct UnitPart {
    std::string name;
    std::vector<int> params;  ///< positions of all parameters that its forward uses, shared ones included
  };

  std::vector<Param> params;
  std::vector<std::pair<std::string, std::string>> aliases;  ///< (other name, name in params), in the module's order
  std::vector<UnitPart> units;
  std::vector<Entry> entries;  ///< all names of parameters and buffers, in the order of Python's state_dict()

  [[nodiscard]] int index_of(const std::string& name) const;  ///< also by alias; -1 when there is none
};

/// A parameter belongs to the innermost unit around it. Throws ConfigError for a unit that is no submodule of the
/// model, is listed twice, or belongs to another engine.
ModelParams inspect_model(const torch::nn::Module& model, const std::vector<AnyUnit>& units);

}  // namespace deepscale
