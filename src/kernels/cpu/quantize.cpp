#include "kernels/cpu/quantize.h"

#include "base/error.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/matrix_checks.h"

namespace deepscale::kernels {

void quantize_groups(const void* weights, DType weights_dtype, const QuantizedMatrix& matrix, RowRange rows) {
  check_float_dtype("quantize_groups", "weights_dtype", weights_dtype);
  if (!check_quantized_matrix("quantize_groups", matrix, rows)) return;
  check_present("quantize_groups", "weights", weights);
  kernel_table().quantize({const_cast<void*>(weights), weights_dtype, matrix, rows});
}

void dequantize_groups(const QuantizedMatrix& matrix, void* weights, DType weights_dtype, RowRange rows) {
  check_float_dtype("dequantize_groups", "weights_dtype", weights_dtype);
  if (!check_quantized_matrix("dequantize_groups", matrix, rows)) return;
  check_present("dequantize_groups", "weights", weights);
  kernel_table().dequantize({weights, weights_dtype, matrix, rows});
}

}  // namespace deepscale::kernels
