#include "kernels/cpu/matmul.h"

#include <cstddef>
#include <memory>
#include <new>

#include "base/error.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/matrix_checks.h"

namespace deepscale::kernels {
namespace {

struct AlignedDelete {
  void operator()(void* memory) const { ::operator delete (memory, std::align_val_t{64}); }
};

/// Whether there is anything to do.
bool check_args(const char* kernel, const MatmulArgs& args, int64_t n, int64_t k, RowRange rows) {
  check_float_dtype(kernel, "x_dtype", args.x_dtype);
  check_float_dtype(kernel, "y_dtype", args.y_dtype);
  check_float_dtype(kernel, "bias_dtype", args.bias_dtype);
  DS_CHECK(args.m >= 0 && n >= 0 && k >= 0, "{}: m, n, k are {}, {}, {}; expected 0 or more", kernel, args.m, n, k);
  check_rows(kernel, n, rows);
  if (args.m == 0 || rows.begin == rows.end) return false;
  DS_CHECK(args.m == 1 || (args.x_stride >= k && args.y_stride >= n),
           "{}: x_stride is {} and y_stride {}; expected at least k = {} and n = {}", kernel, args.x_stride,
           args.y_stride, k, n);
  check_present(kernel, "y", args.y);
  if (k > 0) check_present(kernel, "x", args.x);
  return true;
}

void run(const char* kernel, MatmulCall& call) {
  const auto bytes = static_cast<size_t>(matmul_workspace_numel(call.args.m, call.k)) * sizeof(float);
  const std::unique_ptr<void, AlignedDelete> workspace(::operator new (bytes, std::align_val_t{64}, std::nothrow));
  DS_CHECK(workspace != nullptr, "{}: no memory for {} bytes of workspace (m = {}, k = {})", kernel, bytes, call.args.m,
           call.k);
  call.workspace = static_cast<float*>(workspace.get());
  const KernelTable& table = kernel_table();
  const bool dots = table.matmul_bfloat16 != nullptr && call.args.x_dtype == DType::kBFloat16 && is_bfloat16(call.kind);
  (dots ? table.matmul_bfloat16 : table.matmul)(call);
}

}  // namespace

void quantized_matmul(const QuantizedMatrix& weights, const MatmulArgs& args, RowRange rows) {
  const char* const kernel = "quantized_matmul";
  const bool has_weights = check_quantized_matrix(kernel, weights, rows);
  if (!check_args(kernel, args, weights.rows, weights.cols, rows)) return;
  MatmulCall call;
  call.kind = quantized_kind(weights.format.bits, args.x_dtype);
  call.quantized = weights;
  call.weights = weights.values;
  call.row_bytes = row_bytes(weights.cols, weights.format);
  call.k = has_weights ? weights.cols : 0;
  call.args = args;
  call.rows = rows;
  run(kernel, call);
}

void matmul_transposed(const void* weights, DType weights_dtype, int64_t n, int64_t k, const MatmulArgs& args,
                       RowRange rows) {
  const char* const kernel = "matmul_transposed";
  check_float_dtype(kernel, "weights_dtype", weights_dtype);
  if (!check_args(kernel, args, n, k, rows)) return;
  if (k > 0) check_present(kernel, "weights", weights);
  MatmulCall call;
  call.kind = plain_kind(weights_dtype);
  call.weights = weights;
  call.row_bytes = k * size_of(weights_dtype);
  call.k = k;
  call.args = args;
  call.rows = rows;
  run(kernel, call);
}

}  // namespace deepscale::kernels
