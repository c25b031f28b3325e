// Argument checks that quantize.cpp and matmul.cpp share. Each throws what the contracts of quantize.h and matmul.h
// say.
#pragma once

#include "base/error.h"
#include "kernels/cpu/quantize.h"

namespace deepscale::kernels {

inline void check_float_dtype(const char* kernel, const char* parameter, DType dtype) {
  DS_CHECK_AS(UnsupportedError, dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16,
              "{}: {} is {}; expected float32, bfloat16 or float16", kernel, parameter, name_of(dtype));
}

inline void check_present(const char* kernel, const char* parameter, const void* memory) {
  DS_CHECK(memory != nullptr, "{}: {} is null; pass its memory", kernel, parameter);
}

inline void check_rows(const char* kernel, int64_t matrix_rows, RowRange rows) {
  DS_CHECK(0 <= rows.begin && rows.begin <= rows.end && rows.end <= matrix_rows,
           "{}: rows are [{}, {}) of a matrix with {} rows; expected 0 <= begin <= end <= {}", kernel, rows.begin,
           rows.end, matrix_rows, matrix_rows);
}

/// Whether there is anything to do.
inline bool check_quantized_matrix(const char* kernel, const QuantizedMatrix& matrix, RowRange rows) {
  const GroupFormat& format = matrix.format;
  DS_CHECK_AS(UnsupportedError, format.bits == 4 || format.bits == 8, "{}: bits is {}; expected 4 or 8", kernel,
              format.bits);
  DS_CHECK(format.group_size >= 1, "{}: group_size is {}; expected 1 or more", kernel, format.group_size);
  check_float_dtype(kernel, "params_dtype", format.params_dtype);
  DS_CHECK(matrix.rows >= 0 && matrix.cols >= 0, "{}: the matrix is [{}, {}]; expected sizes of 0 or more", kernel,
           matrix.rows, matrix.cols);
  check_rows(kernel, matrix.rows, rows);
  if (rows.begin == rows.end || matrix.cols == 0) return false;
  check_present(kernel, "values", matrix.values);
  check_present(kernel, "scales", matrix.scales);
  if (!format.symmetric) check_present(kernel, "minimums", matrix.minimums);
  return true;
}

}  // namespace deepscale::kernels
