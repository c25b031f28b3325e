// The table of SIMD kernels of one CPU target, and how the target is chosen. Internal to kernels/cpu: the public doors
// are crc32.h, matmul.h, optimizers.h, quantize.h and spans.h, which check their arguments and call through
// kernel_table(). Tests take the tables of every target from kernel_table_for().
//
// Files named *_simd.cpp are compiled once per target. They include nothing but this header and Highway, because an
// inline function of a std header that is emitted with AVX-512 code could be picked by the linker for every CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/dtype.h"
#include "base/reduce_op.h"
#include "kernels/cpu/matmul.h"
#include "kernels/cpu/optimizers.h"
#include "kernels/cpu/quantize.h"
#include "kernels/cpu/spans.h"

namespace deepscale::kernels {

/// What the Adam loop needs, computed once per call in double and rounded to fp32 once.
struct AdamConstants {
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float eps, inv_sqrt_bc2;
  float step_size;  ///< lr / bias_correction1
  float decay;      ///< lr * weight_decay when decoupled, else weight_decay
  bool decoupled;
};

struct LionConstants {
  float lr, beta1, one_minus_beta1, beta2, one_minus_beta2;
  float decay;  ///< lr * weight_decay
};

struct AdagradConstants {
  float lr, eps, weight_decay;
};

struct SgdConstants {
  float lr, momentum, one_minus_dampening, weight_decay;
  bool nesterov, first_step;
};

struct LambConstants {
  float beta1, one_minus_beta1, beta2, one_minus_beta2, eps, weight_decay;
  bool eps_inside_sqrt;
};

/// Buffers of reduce_buffers with its arguments already checked; averages carry their factor 1/N in `op`'s kernel.
struct ReduceCall {
  const void* const* inputs;
  size_t input_count;
  void* const* outputs;
  size_t output_count;
  int64_t numel;
  DType dtype;
  ReduceOp op;
};

/// A conversion or accumulation: `numel` elements from source to destination.
struct ConvertCall {
  const void* source;
  DType source_dtype;
  void* destination;
  DType destination_dtype;
  int64_t numel;
  double scale;
};

/// Rows between a plain matrix and a quantised one, in either direction.
struct QuantizeCall {
  void* weights;  ///< read by quantize
  DType weights_dtype;
  QuantizedMatrix matrix;
  RowRange rows;
};

/// The last two: dequantised, then rounded to bf16.
enum class WeightKind : uint8_t { kFloat32, kBFloat16, kFloat16, kInt8, kInt4, kInt8AsBFloat16, kInt4AsBFloat16 };

constexpr WeightKind quantized_kind(int bits, DType x_dtype) {
  if (x_dtype == DType::kBFloat16) return bits == 4 ? WeightKind::kInt4AsBFloat16 : WeightKind::kInt8AsBFloat16;
  return bits == 4 ? WeightKind::kInt4 : WeightKind::kInt8;
}

constexpr WeightKind plain_kind(DType dtype) {
  return dtype == DType::kBFloat16  ? WeightKind::kBFloat16
         : dtype == DType::kFloat16 ? WeightKind::kFloat16
                                    : WeightKind::kFloat32;
}

/// A product of matmul.h with its arguments already checked.
struct MatmulCall {
  WeightKind kind = WeightKind::kFloat32;
  const void* weights = nullptr;
  int64_t row_bytes = 0;  ///< from one row of weights to the next
  int64_t k = 0;
  QuantizedMatrix quantized;  ///< of the kinds with kInt
  MatmulArgs args;
  RowRange rows;
  float* workspace = nullptr;  ///< matmul_workspace_numel() floats, 64-byte aligned
};

/// Rows of x that are multiplied in one pass over the weights, and rows of W whose sums are kept meanwhile.
inline constexpr int64_t kMatmulPassRows = 64, kMatmulChunkRows = 64;
/// Rows of W that are dequantised at a time when a pass has many rows of x.
inline constexpr int64_t kMatmulTileRows = 8;

constexpr bool is_bfloat16(WeightKind kind) {
  return kind == WeightKind::kBFloat16 || kind == WeightKind::kInt8AsBFloat16 || kind == WeightKind::kInt4AsBFloat16;
}

/// Sums of a chunk, dequantised tile, packed x.
constexpr int64_t matmul_workspace_numel(int64_t m, int64_t k) {
  const int64_t pass = m < kMatmulPassRows ? m : kMatmulPassRows;
  return pass * kMatmulChunkRows + kMatmulTileRows * kMatmulBlock + pass * ((k + 31) / 32 * 32 + 16);
}

struct KernelTable {
  void (*adam)(const AdamConstants&, const OptimizerSpan&);
  void (*lion)(const LionConstants&, const OptimizerSpan&);
  void (*adagrad)(const AdagradConstants&, const OptimizerSpan&);
  void (*sgd)(const SgdConstants&, const OptimizerSpan&);
  void (*lamb_update)(const LambConstants&, const OptimizerSpan&, float* update);
  void (*lamb_apply)(float step, const float* update, const OptimizerSpan&);
  void (*reduce)(const ReduceCall&);
  void (*sum_of_squares)(const void* values, DType dtype, int64_t numel, double* partials);
  void (*convert)(const ConvertCall&);
  void (*accumulate)(const ConvertCall&);
  void (*copy)(const void* source, void* destination, int64_t bytes);
  void (*quantize)(const QuantizeCall&);
  void (*dequantize)(const QuantizeCall&);
  void (*matmul)(const MatmulCall&);
  /// The same for x in bf16 and kinds that end in it, by the processor's dot products; null where it has none.
  void (*matmul_bfloat16)(const MatmulCall&);
  /// Reduces the first bytes to 16 that have the same CRC-32 when its register was `state` before and is 0 then, and
  /// returns how many they were; bytes >= 64. Null where the processor has no carry-less products.
  int64_t (*crc32_fold)(uint32_t state, const void* data, int64_t bytes, uint8_t* remainder);
};

/// One SIMD target that this build contains and this CPU runs. `bit` is Highway's HWY_* constant.
struct CpuTarget {
  int64_t bit;
  const char* name;
};

/// Targets that this CPU runs, best first; never empty. Writes at most `capacity` entries and returns their number.
size_t available_targets(CpuTarget* targets, size_t capacity);

/// The kernels of one of available_targets().
KernelTable kernel_table_for(const CpuTarget& target);

/// The target named by `forced` ("" or null: the best one). Throws ConfigError for a name that is not available.
CpuTarget choose_target(const char* forced);

/// The kernels in use, chosen at the first call from DEEPSCALE_CPU_TARGET and the CPU, constant from then on.
const KernelTable& kernel_table();

/// Each *_simd.cpp writes its kernels for `target` into the table.
void fill_crc32_kernels(int64_t target, KernelTable& table);
void fill_optimizer_kernels(int64_t target, KernelTable& table);
void fill_matmul_kernels(int64_t target, KernelTable& table);
void fill_matmul_bfloat16_kernels(KernelTable& table);  ///< for CPUs with AVX3 and AVX-512 BF16
void fill_quantize_kernels(int64_t target, KernelTable& table);
void fill_reduce_kernels(int64_t target, KernelTable& table);
void fill_span_kernels(int64_t target, KernelTable& table);

}  // namespace deepscale::kernels
