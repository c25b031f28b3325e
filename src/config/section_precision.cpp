// Tables of `fp16`, `bf16`, `torch_autocast` and `data_types`.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::between;

}  // namespace

const config::Section& table_of(const Fp16Options*) {
  using S = Fp16Options;
  static const config::Section kTable =
      config::strict_section<S>("Training in fp16 with a loss scale. Not together with bf16 or torch_autocast.")
          .option("enabled", &S::enabled, any(), "Casts parameters to fp16.")
          .option("auto_cast", &S::auto_cast, any(), "Casts floating-point inputs to fp16.")
          .option("loss_scale", &S::loss_scale, at_least(0), "Static loss scale; 0 is dynamic.")
          .option("initial_scale_power", &S::initial_scale_power, between(0, 126),
                  "The dynamic scale begins at two to this power.")
          .option("loss_scale_window", &S::loss_scale_window, any(),
                  "Steps without overflow before the dynamic scale doubles; above 0 when the scale is dynamic.")
          .option("hysteresis", &S::hysteresis, at_least(1), "Overflows before the dynamic scale is halved.")
          .option("consecutive_hysteresis", &S::consecutive_hysteresis, any(),
                  "Every step without overflow refills the hysteresis.")
          .option("min_loss_scale", &S::min_loss_scale, any(),
                  "Least dynamic scale; above 0 when the scale is dynamic.")
          .option("fp16_master_weights_and_grads", &S::fp16_master_weights_and_grads, any(),
                  "Keeps master weights and gradients in fp16: stages 1 to 3 with offload_optimizer on the host.")
          .build();
  return kTable;
}

const config::Section& table_of(const Bf16Options*) {
  using S = Bf16Options;
  static const config::Section kTable =
      config::strict_section<S>("Training in bf16, without a loss scale. Not together with fp16 or torch_autocast.")
          .option("enabled", &S::enabled, any(), "Casts parameters to bf16.")
          .option("immediate_grad_update", &S::immediate_grad_update, any(),
                  "Adds gradients to their fp32 copies as soon as they are produced.")
          .option("check_grad_overflow", &S::check_grad_overflow, any(), "Skips steps whose gradients are not finite.")
          .option("bf16_master_weights_and_grads", &S::bf16_master_weights_and_grads, any(),
                  "Keeps master weights and gradients in bf16: stages 1 to 3.")
          .option("bf16_optimizer_states", &S::bf16_optimizer_states, any(),
                  "Keeps optimizer states in bf16; needs bf16_master_weights_and_grads.")
          .build();
  return kTable;
}

const config::Section& table_of(const TorchAutocastOptions*) {
  using S = TorchAutocastOptions;
  static const config::Section kTable =
      config::lenient_section<S>(
          "Runs the forward pass under torch.autocast and keeps parameters in fp32. Not together with fp16 or bf16.")
          .option("enabled", &S::enabled, any(), "Turns autocast on.")
          .option("dtype", &S::dtype, any(), "Lower precision of autocast; null is torch's default.")
          .option("lower_precision_safe_modules", &S::lower_precision_safe_modules, any(),
                  "Accepted: gradients travel in the parameters' dtype; communication_data_type chooses another one.")
          .build();
  return kTable;
}

const config::Section& table_of(const DataTypeOptions*) {
  using S = DataTypeOptions;
  static const config::Section kTable =
      config::lenient_section<S>("Element types beside the model's own.")
          .option("grad_accum_dtype", &S::grad_accum_dtype, any(),
                  "Type in which gradients are accumulated; null is the model's.")
          .option("param_dtype", &S::param_dtype, any(), "Type of the parameters; must agree with fp16 or bf16.")
          .option("buffer_dtype", &S::buffer_dtype, any(),
                  "Type to which floating-point buffers are cast; null decides for each buffer (docs/precision.md).")
          .option("keep_in_fp32_modules", &S::keep_in_fp32_modules, config::any().or_text("auto"),
                  "Name patterns of modules whose buffers stay fp32; \"auto\" asks the model.")
          .build();
  return kTable;
}

}  // namespace deepscale
