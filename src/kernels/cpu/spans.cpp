#include "kernels/cpu/spans.h"

#include "base/error.h"
#include "kernels/cpu/kernel_table.h"

namespace deepscale::kernels {
namespace {

bool is_float(DType dtype) {
  return dtype == DType::kFloat32 || dtype == DType::kBFloat16 || dtype == DType::kFloat16 || dtype == DType::kFloat64;
}

void check_float(const char* kernel, const char* parameter, DType dtype) {
  DS_CHECK_AS(UnsupportedError, is_float(dtype), "{}: {} is {}; expected float32, bfloat16, float16 or float64", kernel,
              parameter, name_of(dtype));
}

void check_buffer(const char* kernel, const char* parameter, const void* data) {
  DS_CHECK(data != nullptr, "{}: {} is null; pass memory for numel elements", kernel, parameter);
}

void check_numel(const char* kernel, int64_t numel) {
  DS_CHECK(numel >= 0, "{}: numel is {}; expected 0 or more", kernel, numel);
}

}  // namespace

void reduce_buffers(std::span<const void* const> inputs, std::span<void* const> outputs, int64_t numel, DType dtype,
                    ReduceOp op) {
  check_numel("reduce_buffers", numel);
  DS_CHECK(!inputs.empty(), "reduce_buffers: there are no inputs; pass the buffer of at least one rank");
  DS_CHECK_AS(UnsupportedError, !(dtype == DType::kBool && op == ReduceOp::kAvg),
              "reduce_buffers: bool has no average; use sum (any), product (all), max or min");
  if (numel == 0) return;
  for (const void* input : inputs) check_buffer("reduce_buffers", "an input", input);
  for (const void* output : outputs) check_buffer("reduce_buffers", "an output", output);
  kernel_table().reduce({inputs.data(), inputs.size(), outputs.data(), outputs.size(), numel, dtype, op});
}

void sum_of_squares(const void* values, DType dtype, int64_t numel, double* partials) {
  check_numel("sum_of_squares", numel);
  check_float("sum_of_squares", "dtype", dtype);
  if (numel == 0) return;
  check_buffer("sum_of_squares", "values", values);
  check_buffer("sum_of_squares", "partials", partials);
  kernel_table().sum_of_squares(values, dtype, numel, partials);
}

void convert(const void* source, DType source_dtype, void* destination, DType destination_dtype, int64_t numel,
             float scale) {
  check_numel("convert", numel);
  check_float("convert", "source_dtype", source_dtype);
  check_float("convert", "destination_dtype", destination_dtype);
  if (numel == 0) return;
  check_buffer("convert", "source", source);
  check_buffer("convert", "destination", destination);
  if (source_dtype == destination_dtype && scale == 1.0f) {
    if (source != destination) copy_bytes(source, destination, numel * size_of(source_dtype));
    return;
  }
  kernel_table().convert({source, source_dtype, destination, destination_dtype, numel, scale});
}

void accumulate(const void* source, DType source_dtype, void* destination, DType destination_dtype, int64_t numel) {
  check_numel("accumulate", numel);
  check_float("accumulate", "source_dtype", source_dtype);
  check_float("accumulate", "destination_dtype", destination_dtype);
  if (numel == 0) return;
  check_buffer("accumulate", "source", source);
  check_buffer("accumulate", "destination", destination);
  kernel_table().accumulate({source, source_dtype, destination, destination_dtype, numel, 1.0});
}

void copy_bytes(const void* source, void* destination, int64_t bytes) {
  check_numel("copy_bytes", bytes);
  if (bytes == 0) return;
  check_buffer("copy_bytes", "source", source);
  check_buffer("copy_bytes", "destination", destination);
  kernel_table().copy(source, destination, bytes);
}

}  // namespace deepscale::kernels
