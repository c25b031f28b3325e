// The optimizers that DeepScale computes itself, as one update of one run of elements. On the CPU the kernels of
// kernels/cpu/optimizers.h do it; on other devices aten_optimizer.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>
#include <vector>

namespace deepscale {

enum class OptimizerKind { kNone, kExternal, kAdam, kLion, kAdagrad, kSgd, kLamb, kMuon };

/// What is the same for all parameter groups.
struct NativeOptimizerOptions {
  OptimizerKind kind = OptimizerKind::kNone;
  bool decoupled = true;
  bool bias_correction = true;
  bool nesterov = false;
  bool momentum = true;  ///< SGD: some group has momentum, and needs a buffer for it
  bool eps_inside_sqrt = false;
  double max_coeff = 10.0;
  double min_coeff = 0.01;
  /// Element types of master copies and states. 16-bit ones save memory and give up the accuracy that copies exist for;
  /// the arithmetic is fp32 whatever they are.
  at::ScalarType master_dtype = at::kFloat;
  at::ScalarType state_dtype = at::kFloat;
  bool states_as_master = false;  ///< asks whoever knows the configuration for state_dtype = master_dtype

  /// From {"type": ..., ...}. Throws ConfigError for an unknown type.
  static OptimizerKind kind_from(const std::string& type);
  /// Names of the per-element states, in the order of UpdateRun::states: {"exp_avg", "exp_avg_sq"}, ...
  [[nodiscard]] std::vector<std::string> state_names() const;
};

/// Hyper-parameters of one group for one step, by DeepSpeed's names (lr, beta1, beta2, eps, weight_decay, momentum,
/// ...).
using GroupHyper = std::map<std::string, double>;

/// 1-D tensors of one length; `copy_out` may be undefined.
struct UpdateRun {
  at::Tensor master;  ///< NativeOptimizerOptions::master_dtype
  at::Tensor grad;    ///< any float dtype
  std::vector<at::Tensor> states;
  at::Tensor copy_out;  ///< model's dtype, undefined when master is the model's parameter
  bool fresh = false;   ///< states hold nothing yet: SGD's momentum then starts as the gradient itself
};

/// One elementwise update (Adam, Lion, Adagrad, SGD). step is 1-based. grad_scale multiplies the gradient.
void update_run(const NativeOptimizerOptions& options, const GroupHyper& hyper, int64_t step, double grad_scale,
                const UpdateRun& run);

/// LAMB's first half: moments and the raw update (fp32, same length).
at::Tensor lamb_raw_update(const NativeOptimizerOptions& options, const GroupHyper& hyper, double grad_scale,
                           const UpdateRun& run);
/// LAMB's second half.
void lamb_apply_update(double factor, const at::Tensor& update, const UpdateRun& run);

/// Muon's direction for this piece: momentum buffer (states[0]) is updated, the Nesterov combination is returned
/// (fp32).
at::Tensor muon_direction(const GroupHyper& hyper, double grad_scale, const UpdateRun& run);
/// Newton-Schulz orthogonalisation (Jordan et al. 2024, "Muon"): five steps of the quintic with coefficients
/// 3.4445, -4.7750, 2.0315 in bf16 on the matrix normalised by its norm, transposed when tall; scaled by
/// sqrt(max(1, rows/columns)). `matrix`: fp32 [rows, columns]; the result has the same shape.
at::Tensor orthogonalize(const at::Tensor& matrix);

double hyper_value(const GroupHyper& hyper, const std::string& name, double fallback);

}  // namespace deepscale
