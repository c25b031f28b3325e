// What is different in two checkpoints, whatever layout, stage and number of ranks wrote each. Memory is bounded.
// Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/tensor_source.h"

namespace deepscale {

struct TensorDifference {
  std::string name;              ///< in the first checkpoint, or in the only one that has it
  std::string what;              ///< "only in the first", "shape [2, 3], [3, 2]", "dtype float32, bfloat16"; or ""
  int64_t numel = 0;             ///< compared
  int64_t different = 0;         ///< elements whose bits (with two dtypes: values) are different
  int64_t first_different = -1;  ///< element of the flattened tensor
  int64_t not_numbers = 0;       ///< of those, elements where a side is NaN
  double largest = 0.0;          ///< absolute difference, of elements that are numbers on both sides
};

struct DiffOptions {
  bool weights_only = false;                                 ///< no states of the optimizer
  std::function<bool(const std::string& name)> wanted = {};  ///< empty: all
  std::function<void(int64_t bytes)> read = {};              ///< of the first checkpoint
};

struct DiffReport {
  int64_t compared = 0;   ///< tensors in both
  int64_t identical = 0;  ///< of those: dtype, shape and all bits
  std::vector<TensorDifference> differences;

  [[nodiscard]] bool equal() const { return differences.empty(); }
};

/// Weights are compared by their names in the model, whether a checkpoint has a master copy of them or not. Throws what
/// reading throws.
[[nodiscard]] DiffReport compare_tensors(TensorSource& first, TensorSource& second, const DiffOptions& options);

}  // namespace deepscale
