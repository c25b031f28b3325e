#include "inference/packed_weight.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "base/error.h"
#include "comm/communicator.h"
#include "kernels/cpu/matmul.h"
#include "zero/parallel.h"

namespace deepscale {
namespace {

// Above so many rows of x the products are bound by arithmetic and ATen's blocked ones win; with packed weights they
// must also pay for the dequantised copy.
constexpr int64_t kFewRows = 16;
constexpr int64_t kFewPackedRows = 128;
// A thread takes at least so many bytes of weights: reading them takes some 10 us, waking a thread about 5.
constexpr int64_t kBytesPerThread = 128 << 10;

kernels::GroupFormat format_of(const PackedShape& shape, at::ScalarType dtype) {
  return {shape.bits, shape.group_size, shape.symmetric, to_dtype(dtype)};
}

/// Bytes before the scales: whole elements.
int64_t value_bytes(const PackedShape& shape, const kernels::GroupFormat& format, int64_t element) {
  const int64_t bytes = shape.rows * kernels::row_bytes(shape.cols, format);
  return (bytes + element - 1) / element * element;
}

kernels::QuantizedMatrix matrix_of(const at::Tensor& packed, const PackedShape& shape) {
  DS_CHECK(
      packed.is_cpu() && packed.is_contiguous() && packed.numel() == shape.numel(packed.scalar_type()),
      "packed weight: expected a contiguous CPU tensor of {} elements for a [{}, {}] weight of {} bits in groups of "
      "{}, got {} elements on {}",
      shape.numel(packed.scalar_type()), shape.rows, shape.cols, shape.bits, shape.group_size, packed.numel(),
      packed.device().str());
  const kernels::GroupFormat format = format_of(shape, packed.scalar_type());
  const auto element = static_cast<int64_t>(packed.element_size());
  const int64_t groups = shape.rows * kernels::groups_per_row(shape.cols, format);
  auto* bytes = static_cast<char*>(packed.data_ptr());
  char* scales = bytes + value_bytes(shape, format, element);
  return {shape.rows, shape.cols, format, bytes, scales, shape.symmetric ? nullptr : scales + groups * element};
}

/// Rows of one thread: enough bytes, and whole pairs of cache lines of y.
int64_t rows_per_thread(int64_t bytes_per_row) {
  return std::max<int64_t>(32, kBytesPerThread / std::max<int64_t>(1, bytes_per_row));
}

/// Rows that a thread multiplies before it looks for more: small enough that threads end together, and a multiple of
/// what the kernels keep sums of.
int64_t rows_per_piece(int64_t bytes_per_row) {
  constexpr int64_t kBytesPerPiece = 512 << 10, kMultiple = 64;
  const int64_t rows = kBytesPerPiece / std::max<int64_t>(1, bytes_per_row);
  return std::max(kMultiple, rows / kMultiple * kMultiple);
}

bool floating(const at::Tensor& tensor) {
  const at::ScalarType dtype = tensor.scalar_type();
  return dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf;
}

/// x and y as the kernels take them. Keeps x alive.
struct Product {
  Product(const at::Tensor& input, int64_t n, int64_t k, const std::optional<at::Tensor>& bias)
      : x(input.contiguous()), m(k == 0 ? 0 : input.numel() / k) {
    std::vector<int64_t> sizes = input.sizes().vec();
    sizes.back() = n;
    y = at::empty(sizes, input.options());
    args = {x.const_data_ptr(), to_dtype(x.scalar_type()), k, m, y.data_ptr(), to_dtype(y.scalar_type()), n};
    if (bias) {
      offset = bias->contiguous();
      args.bias = offset.const_data_ptr();
      args.bias_dtype = to_dtype(offset.scalar_type());
    }
  }

  at::Tensor x;
  int64_t m;
  at::Tensor y;
  at::Tensor offset;
  kernels::MatmulArgs args;
};

void check_linear(const at::Tensor& x, int64_t n, int64_t k, const std::optional<at::Tensor>& bias) {
  DS_CHECK(x.dim() >= 1 && x.size(-1) == k && floating(x),
           "linear with a [{}, {}] weight: x must be floating with {} elements in its last dimension, got {} [{}]", n,
           k, k, c10::toString(x.scalar_type()), fmt::join(x.sizes(), ", "));
  DS_CHECK(!bias || (bias->numel() == n && floating(*bias) && bias->is_cpu()),
           "linear with a [{}, {}] weight: bias must have {} floating elements on the CPU", n, k, n);
}

}  // namespace

int64_t PackedShape::numel(at::ScalarType dtype) const {
  const kernels::GroupFormat format = format_of(*this, dtype);
  const auto element = static_cast<int64_t>(c10::elementSize(dtype));
  const int64_t groups = rows * kernels::groups_per_row(cols, format);
  return value_bytes(*this, format, element) / element + groups * (symmetric ? 1 : 2);
}

void check_packed_shape(const PackedShape& shape) {
  DS_CHECK_AS(ConfigError, shape.bits == 4 || shape.bits == 8, "weight_quantization: num_bits must be 4 or 8, got {}",
              shape.bits);
  DS_CHECK_AS(ConfigError, shape.group_size >= 1, "weight_quantization: group_size must be at least 1, got {}",
              shape.group_size);
  DS_CHECK_AS(ConfigError, shape.rows >= 0 && shape.cols >= 0, "weight_quantization: a weight of shape [{}, {}]",
              shape.rows, shape.cols);
}

at::Tensor pack_weight(const at::Tensor& weight, const PackedShape& shape) {
  check_packed_shape(shape);
  DS_CHECK(weight.dim() == 2 && weight.size(0) == shape.rows && weight.size(1) == shape.cols && weight.is_cpu() &&
               floating(weight),
           "weight_quantization: expected a [{}, {}] weight in fp32, bf16 or fp16 on the CPU, got {} [{}] on {}",
           shape.rows, shape.cols, c10::toString(weight.scalar_type()), fmt::join(weight.sizes(), ", "),
           weight.device().str());
  const c10::NoGradGuard no_grad;
  const at::Tensor source = weight.contiguous();
  at::Tensor packed = at::zeros({shape.numel(weight.scalar_type())}, weight.options().requires_grad(false));
  const kernels::QuantizedMatrix matrix = matrix_of(packed, shape);
  parallel_items(shape.rows, rows_per_thread(shape.cols * 2), [&](int64_t begin, int64_t end) {
    kernels::quantize_groups(source.const_data_ptr(), to_dtype(source.scalar_type()), matrix, {begin, end});
  });
  return packed;
}

at::Tensor unpack_weight(const at::Tensor& packed, const PackedShape& shape) {
  check_packed_shape(shape);
  const c10::NoGradGuard no_grad;
  const kernels::QuantizedMatrix matrix = matrix_of(packed, shape);
  at::Tensor weight = at::empty({shape.rows, shape.cols}, packed.options());
  parallel_items(shape.rows, rows_per_thread(shape.cols * 2), [&](int64_t begin, int64_t end) {
    kernels::dequantize_groups(matrix, weight.data_ptr(), to_dtype(weight.scalar_type()), {begin, end});
  });
  return weight;
}

at::Tensor packed_linear(const at::Tensor& x, const at::Tensor& packed, const PackedShape& shape,
                         const std::optional<at::Tensor>& bias) {
  check_packed_shape(shape);
  check_linear(x, shape.rows, shape.cols, bias);
  const c10::NoGradGuard no_grad;
  const kernels::QuantizedMatrix matrix = matrix_of(packed, shape);
  const Product product(x, shape.rows, shape.cols, bias);
  if (product.m > kFewPackedRows || shape.cols == 0) {  // the kernel leaves y alone without a column
    const at::Tensor weight = unpack_weight(packed, shape);
    const auto offset = bias ? std::optional(bias->to(x.scalar_type())) : std::nullopt;
    return at::linear(x, weight.to(x.scalar_type()), offset);
  }
  share_items(shape.rows, rows_per_piece(kernels::row_bytes(shape.cols, matrix.format)),
              [&](int64_t begin, int64_t end) {
                kernels::quantized_matmul(matrix, product.args, {begin, end});
              });
  return product.y;
}

at::Tensor packed_embedding(const at::Tensor& ids, const at::Tensor& packed, const PackedShape& shape) {
  check_packed_shape(shape);
  const c10::NoGradGuard no_grad;
  const kernels::QuantizedMatrix matrix = matrix_of(packed, shape);
  const at::Tensor list = ids.to(at::kCPU, at::kLong).contiguous();
  std::vector<int64_t> sizes = ids.sizes().vec();
  sizes.push_back(shape.cols);
  at::Tensor rows = at::empty(sizes, packed.options());
  const int64_t groups = kernels::groups_per_row(shape.cols, matrix.format);
  const auto element = static_cast<int64_t>(packed.element_size());
  const int64_t* wanted = list.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < list.numel(); ++i) {
    const int64_t id = wanted[i];
    DS_CHECK(id >= 0 && id < shape.rows, "embedding: id {} is outside of 0..{}", id, shape.rows - 1);
    kernels::QuantizedMatrix row = matrix;
    row.rows = 1;
    row.values = static_cast<char*>(matrix.values) + id * kernels::row_bytes(shape.cols, matrix.format);
    row.scales = static_cast<char*>(matrix.scales) + id * groups * element;
    if (matrix.minimums != nullptr) row.minimums = static_cast<char*>(matrix.minimums) + id * groups * element;
    kernels::dequantize_groups(row, static_cast<char*>(rows.data_ptr()) + i * shape.cols * element,
                               to_dtype(packed.scalar_type()), {0, 1});
  }
  return rows;
}

at::Tensor few_rows_linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const int64_t n = weight.size(0), k = weight.size(1);
  const bool ours = x.is_cpu() && weight.is_cpu() && weight.is_contiguous() && floating(x) && floating(weight) &&
                    x.scalar_type() == weight.scalar_type() && x.dim() >= 1 && k > 0 && x.numel() > 0 &&
                    x.numel() / k <= kFewRows;
  if (!ours) return at::linear(x, weight, bias);
  check_linear(x, n, k, bias);
  const c10::NoGradGuard no_grad;
  const Product product(x, n, k, bias);
  const auto element = static_cast<int64_t>(weight.element_size());
  share_items(n, rows_per_piece(k * element), [&](int64_t begin, int64_t end) {
    kernels::matmul_transposed(weight.const_data_ptr(), to_dtype(weight.scalar_type()), n, k, product.args,
                               {begin, end});
  });
  return product.y;
}

}  // namespace deepscale
