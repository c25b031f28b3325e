// Global gradient norm with the same bits for every sharding: sums of squares over fixed blocks of each tensor
// (kernels::kNormBlock elements counted from the tensor's start), gathered from their owners, added in one fixed order:
// blocks of a tensor ascending, then tensors in model order. Non-finite gradients show as a non-finite sum of their
// block.
#pragma once

#include <cstdint>
#include <vector>

#include "zero/grad_reducer.h"

namespace deepscale {

class GradNorm {
 public:
  /// model_index[u][i]: position of tensor i of unit u in the model; -1 when it has no gradient.
  GradNorm(std::vector<ParamUnit*> units, std::vector<std::vector<int>> model_index);

  struct Result {
    double norm = 0.0;               ///< L2 over all trainable parameters; not finite when any gradient is not
    int first_nonfinite_index = -1;  ///< model index of the first parameter with a non-finite gradient
  };

  /// Adds the partial sums of this rank's pieces of one unit. Call for every unit after its gradient is settled.
  void add_unit(int unit, const at::Tensor& settled_gradient);
  /// Combines all ranks. Collective when any unit's optimizer group has more than one rank.
  Result combine();

 private:
  struct Span {
    int64_t first_block = 0;
    int64_t blocks = 0;
    int model_index = -1;
  };

  std::vector<ParamUnit*> units_;
  std::vector<std::vector<Span>> spans_;  ///< per unit and tensor
  std::vector<Span> in_model_order_;
  Communicator group_;
  at::Tensor partials_;  ///< double, one per block of the model, on the device of the gradients
};

}  // namespace deepscale
