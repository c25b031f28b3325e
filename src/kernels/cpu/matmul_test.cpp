// Products against a scalar model of the numerics in matmul.h (same bits), against double arithmetic (the stated
// error), and for every way to divide the rows over calls.
#include "kernels/cpu/matmul.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <string>

#include "deepscale/error.h"
#include "kernels/cpu/test_support.h"

namespace deepscale::kernels {
namespace {

using testing::bits_of;
using testing::Buffer;
using testing::make_buffer;
using testing::sample_values;

constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

/// The kernels of a SIMD target, with or without the processor's dot products of bf16.
struct Variant {
  std::string name;
  KernelTable table;
  bool dots = false;
};

std::vector<Variant> variants() {
  std::vector<Variant> result;
  for (const CpuTarget& target : testing::targets()) {
    const KernelTable table = kernel_table_for(target);
    result.push_back({target.name, table, false});
    if (table.matmul_bfloat16 != nullptr) result.push_back({std::string(target.name) + " with dots", table, true});
  }
  return result;
}

/// In which elements go to the lanes of a sum.
enum class Order { kNatural, kPairs, kNibbles };

/// A weight matrix [n, k], plain or quantised, and what its elements are in the product.
struct Weights {
  DType dtype = DType::kFloat32;
  std::optional<GroupFormat> format;
  int64_t n, k;
  Buffer plain, values, scales, minimums;
  QuantizedMatrix matrix;
  std::vector<float> elements;

  Weights(DType type, std::optional<GroupFormat> group_format, int64_t rows, int64_t cols, bool corners = false)
      : dtype(type),
        format(group_format),
        n(rows),
        k(cols),
        plain(make_buffer(type, sample_values(rows * cols, 21, corners))),
        values(DType::kUInt8, format ? rows * row_bytes(cols, *format) : 0, 3),
        scales(format ? format->params_dtype : DType::kFloat32, format ? rows * groups_per_row(cols, *format) : 0),
        minimums(scales.dtype(), scales.numel()) {
    if (!format) {
      for (int64_t i = 0; i < n * k; ++i) elements.push_back(plain.get_float(i));
      return;
    }
    matrix = {n, k, *format, values.data(), scales.data(), minimums.data()};
    quantize_groups(plain.data(), dtype, matrix, {0, n});
    const auto* bytes = static_cast<const uint8_t*>(values.data());
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t c = 0; c < k; ++c) elements.push_back(element(bytes + r * row_bytes(k, *format), r, c));
    }
  }

  /// As x of this dtype meets it.
  std::vector<float> row(int64_t j, DType x_dtype) const {
    std::vector<float> w(elements.begin() + j * k, elements.begin() + (j + 1) * k);
    if (format && x_dtype == DType::kBFloat16) {
      for (float& value : w) value = testing::model_from_bfloat16(testing::model_to_bfloat16(value));
    }
    return w;
  }

  Order order() const {
    if (format) return format->bits == 4 ? Order::kNibbles : Order::kPairs;
    return dtype == DType::kBFloat16 ? Order::kPairs : Order::kNatural;
  }

  float element(const uint8_t* row, int64_t r, int64_t c) const {
    const int64_t g = r * groups_per_row(k, *format) + c / format->group_size;
    const int q = format->bits == 8 ? row[c] : c % 2 == 0 ? row[c / 2] >> 4 : row[c / 2] & 15;
    const float inverse = 1.0f / scales.get_float(g);
    const float zero = -static_cast<float>(1 << (format->bits - 1)) * inverse;
    return std::fma(static_cast<float>(q), inverse, format->symmetric ? zero : minimums.get_float(g));
  }

  WeightKind kind(const MatmulArgs& args) const {
    return format ? quantized_kind(format->bits, args.x_dtype) : plain_kind(dtype);
  }

  bool has_dots(const Variant& variant, const MatmulArgs& args) const {
    return variant.dots && is_bfloat16(kind(args)) && args.x_dtype == DType::kBFloat16;
  }

  void multiply(const Variant& variant, const MatmulArgs& args, RowRange rows) const {
    MatmulCall call;
    call.k = k;
    call.args = args;
    call.rows = rows;
    call.kind = kind(args);
    if (format) {
      call.quantized = matrix;
      call.weights = values.data();
      call.row_bytes = row_bytes(k, *format);
    } else {
      call.weights = plain.data();
      call.row_bytes = k * size_of(dtype);
    }
    const int64_t numel = matmul_workspace_numel(args.m, k);
    Buffer workspace(DType::kFloat32, numel, 0);
    call.workspace = static_cast<float*>(workspace.data());
    (has_dots(variant, args) ? variant.table.matmul_bfloat16 : variant.table.matmul)(call);
    ASSERT_TRUE(workspace.guards_intact());
  }

  std::string describe() const {
    std::string text = std::string(name_of(dtype)) + " [" + std::to_string(n) + ", " + std::to_string(k) + "]";
    if (format) {
      text += " in " + std::to_string(format->bits) + " bits, groups of " + std::to_string(format->group_size) +
              (format->symmetric ? ", symmetric" : "") + ", parameters " + std::string(name_of(format->params_dtype));
    }
    return text;
  }
};

/// For each of 32 elements: its lane, and whether the lane takes it second.
std::pair<int64_t, bool> place_of(int64_t c, Order order) {
  c %= 32;
  if (order == Order::kNatural) return {c % 16, c >= 16};
  if (order == Order::kPairs) return {c / 2, c % 2 == 0};
  constexpr int64_t kQuarter[4] = {1, 0, 3, 2};
  return {4 * kQuarter[c % 4] + c / 8, c % 8 < 4};
}

/// What the dot products of bf16 make of numbers below 2^-126.
float flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

enum class Subnormals { kKept, kZero };

/// The sum of the contract.
float model_dot(const std::vector<float>& w, const std::vector<float>& x, Order order, Subnormals subnormals) {
  const auto kept = [&](float value) { return subnormals == Subnormals::kKept ? value : flushed(value); };
  const auto k = static_cast<int64_t>(x.size());
  float total = 0;
  for (int64_t begin = 0; begin < k; begin += kMatmulBlock) {
    const int64_t end = std::min(k, begin + kMatmulBlock);
    float lanes[16] = {};
    for (int64_t step = begin; step < end; step += 32) {
      for (const bool second : {false, true}) {
        for (int64_t c = step; c < std::min(end, step + 32); ++c) {
          const auto [lane, is_second] = place_of(c, order);
          if (is_second == second) lanes[lane] = kept(std::fma(kept(x[c]), kept(w[c]), lanes[lane]));
        }
      }
    }
    for (int half = 8; half > 0; half /= 2) {
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    total += lanes[0];
  }
  return total;
}

/// x, bias and y of a product, with rows further apart than they are long.
struct Product {
  Product(const Weights& weights, int64_t rows, DType x_dtype, DType y_dtype, bool with_bias, bool corners = false)
      : m(rows),
        k(weights.k),
        n(weights.n),
        x(make_buffer(x_dtype, sample_values(rows * (weights.k + 3), 22, corners))),
        bias(make_buffer(x_dtype, sample_values(weights.n, 23, corners))),
        y(y_dtype, rows * (weights.n + 2)) {
    args = {x.data(), x_dtype, k + 3, m, y.data(), y_dtype, n + 2, with_bias ? bias.data() : nullptr, x_dtype};
  }
  std::vector<float> x_row(int64_t i) const {
    std::vector<float> row;
    for (int64_t c = 0; c < k; ++c) row.push_back(x.get_float(i * (k + 3) + c));
    return row;
  }
  float expected(const Weights& weights, int64_t i, int64_t j, Subnormals subnormals) const {
    const float sum = model_dot(weights.row(j, args.x_dtype), x_row(i), weights.order(), subnormals);
    return args.bias == nullptr ? sum : sum + bias.get_float(j);
  }

  int64_t m, k, n;
  Buffer x, bias, y;
  MatmulArgs args;
};

void expect_model(const Weights& weights, Product& product, const Variant& variant) {
  const std::string what = weights.describe() + ", m = " + std::to_string(product.m) + " on " + variant.name;
  weights.multiply(variant, product.args, {0, weights.n});
  ASSERT_TRUE(product.y.guards_intact()) << what;
  Buffer expected(product.y.dtype(), 1);
  const Subnormals subnormals = weights.has_dots(variant, product.args) ? Subnormals::kZero : Subnormals::kKept;
  for (int64_t i = 0; i < product.m; ++i) {
    for (int64_t j = 0; j < weights.n; ++j) {
      expected.set(0, product.expected(weights, i, j, subnormals));
      ASSERT_EQ(product.y.bits(i * (weights.n + 2) + j), expected.bits(0))
          << what << " at " << i << ", " << j << ": " << product.y.get(i * (weights.n + 2) + j) << " for "
          << expected.get(0);
    }
    if (i + 1 < product.m) {
      Buffer untouched(product.y.dtype(), 2);
      ASSERT_EQ(product.y.bits(i * (weights.n + 2) + weights.n), untouched.bits(0)) << what << " wrote between rows";
    }
  }
}

std::vector<std::pair<DType, std::optional<GroupFormat>>> all_kinds(int64_t group_size) {
  std::vector<std::pair<DType, std::optional<GroupFormat>>> kinds;
  for (DType dtype : kTypes) {
    kinds.emplace_back(dtype, std::nullopt);
    for (int bits : {4, 8}) {
      for (bool symmetric : {false, true}) kinds.emplace_back(dtype, GroupFormat{bits, group_size, symmetric, dtype});
    }
  }
  return kinds;
}

TEST(MatmulTest, EveryKindOfWeightAndEveryLengthHasTheModelsBits) {
  for (int64_t k : {1, 2, 15, 16, 31, 32, 33, 64, 95, 1023, 1024, 1025, 2100}) {
    for (const auto& [dtype, format] : all_kinds(32)) {
      const Weights weights(dtype, format, k < 100 ? 11 : 5, k);
      Product product(weights, 3, dtype, DType::kFloat32, true);
      for (const Variant& variant : variants()) {
        expect_model(weights, product, variant);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(MatmulTest, EveryNumberOfRowsOfXHasTheModelsBits) {
  for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 64, 65, 130}) {
    for (const auto& [dtype, format] : all_kinds(64)) {
      const Weights weights(dtype, format, 70, 80);
      Product product(weights, m, dtype, dtype, m % 2 == 0);
      for (const Variant& variant : variants()) {
        expect_model(weights, product, variant);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(MatmulTest, EveryGroupSizeHasTheModelsBits) {
  for (int64_t group_size : {1, 3, 8, 16, 33, 48, 96, 128, 160, 1000, 1024, 2048, 9999}) {
    for (const auto& [dtype, format] : all_kinds(group_size)) {
      if (!format) continue;
      for (int64_t k : {77, 1300}) {
        const Weights weights(dtype, format, 9, k);
        for (int64_t m : {1, 12}) {
          Product product(weights, m, DType::kBFloat16, DType::kFloat32, false);
          for (const Variant& variant : variants()) {
            expect_model(weights, product, variant);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

TEST(MatmulTest, EveryCombinationOfActivationDtypesHasTheModelsBits) {
  const Weights weights(DType::kBFloat16, GroupFormat{4, 32, false, DType::kBFloat16}, 19, 100);
  for (DType x_dtype : kTypes) {
    for (DType y_dtype : kTypes) {
      for (bool bias : {false, true}) {
        Product product(weights, 2, x_dtype, y_dtype, bias);
        for (const Variant& variant : variants()) {
          expect_model(weights, product, variant);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(MatmulTest, InfinitiesNansAndSubnormalsHaveTheModelsBits) {
  for (const auto& [dtype, format] : all_kinds(32)) {
    const Weights weights(dtype, format, 40, 71, true);
    for (int64_t m : {1, 6}) {
      Product product(weights, m, dtype, DType::kFloat32, true, true);
      // Some rows of x are finite, so that not every sum is NaN.
      for (int64_t i = 0; i < 74; ++i) product.x.set(i, static_cast<double>(i % 5 - 2) * 1e-39);
      for (const Variant& variant : variants()) {
        expect_model(weights, product, variant);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(MatmulTest, AnyDivisionOfRowsOverCallsHasTheSameBits) {
  for (const auto& [dtype, format] : all_kinds(64)) {
    const Weights weights(dtype, format, 37, 1100);
    for (int64_t m : {1, 4, 20}) {
      Product whole(weights, m, dtype, DType::kFloat32, true), parts(weights, m, dtype, DType::kFloat32, true);
      for (const Variant& variant : variants()) {
        weights.multiply(variant, whole.args, {0, 37});
        for (const RowRange& rows : {RowRange{30, 37}, RowRange{0, 1}, RowRange{1, 12}, RowRange{12, 30}}) {
          weights.multiply(variant, parts.args, rows);
        }
        for (int64_t i = 0; i < whole.y.numel(); ++i) {
          ASSERT_EQ(parts.y.bits(i), whole.y.bits(i)) << weights.describe() << " on " << variant.name << " at " << i;
        }
      }
    }
  }
}

TEST(MatmulTest, ARowRangeWritesItsColumnsOnly) {
  const Weights weights(DType::kFloat32, GroupFormat{8, 32, false, DType::kFloat32}, 20, 64);
  for (const Variant& variant : variants()) {
    Product product(weights, 3, DType::kFloat32, DType::kFloat32, false);
    weights.multiply(variant, product.args, {7, 13});
    const Buffer untouched(DType::kFloat32, 1);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < 20; ++j) {
        EXPECT_EQ(product.y.bits(i * 22 + j) == untouched.bits(0), j < 7 || j >= 13) << j << " on " << variant.name;
      }
    }
  }
}

/// What the public functions choose.
Variant chosen() {
  return {cpu_target_name(), kernel_table(), kernel_table().matmul_bfloat16 != nullptr};
}

TEST(MatmulTest, TheErrorStaysWithinTheStatedBound) {
  for (const auto& [dtype, format] : all_kinds(128)) {
    const Weights weights(dtype, format, 16, 4096);
    Product product(weights, 2, dtype, DType::kFloat32, false);
    weights.multiply(chosen(), product.args, {0, 16});
    for (int64_t i = 0; i < 2; ++i) {
      const std::vector<float> x = product.x_row(i);
      for (int64_t j = 0; j < 16; ++j) {
        const std::vector<float> w = weights.row(j, dtype);
        double exact = 0, magnitude = 0;
        for (size_t c = 0; c < 4096; ++c) {
          const double term = static_cast<double>(x[c]) * static_cast<double>(w[c]);
          exact += term;
          magnitude += std::fabs(term);
        }
        const double bound = (kMatmulBlock / 16 + 5 + 4) * 0x1p-24 * magnitude;
        EXPECT_LE(std::fabs(product.y.get(i * 18 + j) - exact), bound) << weights.describe();
      }
    }
  }
}

TEST(MatmulTest, ElementsAreThoseOfDequantizeWithoutItsRoundings) {
  // One unit vector per column: y is the dequantised matrix.
  const int64_t n = 9, k = 130;
  for (const bool symmetric : {false, true}) {
    for (const int bits : {4, 8}) {
      const Weights weights(DType::kFloat32, GroupFormat{bits, 32, symmetric, DType::kFloat32}, n, k);
      Buffer x(DType::kFloat32, k * k, 0), y(DType::kFloat32, k * n, 0), reference(DType::kFloat32, n * k);
      for (int64_t i = 0; i < k * k; ++i) x.set(i, i % (k + 1) == 0 ? 1.0 : 0.0);
      MatmulArgs args;
      args.x = x.data();
      args.x_stride = k;
      args.m = k;
      args.y = y.data();
      args.y_stride = n;
      quantized_matmul(weights.matrix, args, {0, n});
      dequantize_groups(weights.matrix, reference.data(), DType::kFloat32, {0, n});
      for (int64_t j = 0; j < n; ++j) {
        for (int64_t c = 0; c < k; ++c) {
          const int64_t g = j * groups_per_row(k, *weights.format) + c / 32;
          const double range = 255.0 / weights.scales.get(g) + std::fabs(symmetric ? 0.0 : weights.minimums.get(g));
          EXPECT_NEAR(y.get(c * n + j), reference.get(j * k + c), range * 0x1p-22);
        }
      }
    }
  }
}

TEST(MatmulTest, PublicFunctionsAgreeWithTheKernels) {
  for (const auto& [dtype, format] : all_kinds(16)) {
    const Weights weights(dtype, format, 23, 50);
    Product product(weights, 3, dtype, dtype, true), expected(weights, 3, dtype, dtype, true);
    weights.multiply(chosen(), expected.args, {2, 23});
    if (format) {
      quantized_matmul(weights.matrix, product.args, {2, 23});
    } else {
      matmul_transposed(weights.plain.data(), dtype, 23, 50, product.args, {2, 23});
    }
    for (int64_t i = 0; i < product.y.numel(); ++i) ASSERT_EQ(product.y.bits(i), expected.y.bits(i));
  }
}

TEST(MatmulTest, EmptySizesMakeZeroOrBias) {
  Buffer y(DType::kFloat32, 6, 0), bias = make_buffer(DType::kFloat32, {1, 2, 3});
  MatmulArgs args;
  args.y = y.data();
  args.y_stride = 3;
  args.m = 2;
  matmul_transposed(nullptr, DType::kFloat32, 3, 0, args, {0, 3});
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(y.get(i), 0.0);
  args.bias = bias.data();
  quantized_matmul({3, 0, {}, nullptr, nullptr, nullptr}, args, {0, 3});
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(y.get(i), static_cast<double>(i % 3 + 1));
  args.m = 0;
  args.y = nullptr;
  EXPECT_NO_THROW(matmul_transposed(nullptr, DType::kFloat32, 3, 5, args, {0, 3}));
  EXPECT_NO_THROW(matmul_transposed(nullptr, DType::kFloat32, 0, 5, args, {0, 0}));
}

TEST(MatmulTest, UnusableArgumentsAreNamed) {
  float memory[64] = {};
  const auto message_of = [&](auto change) -> std::string {
    MatmulArgs args;
    args.x = memory;
    args.x_stride = 8;
    args.m = 2;
    args.y = memory + 32;
    args.y_stride = 3;
    RowRange rows{0, 3};
    change(args, rows);
    try {
      matmul_transposed(memory, DType::kFloat32, 3, 8, args, rows);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_EQ(message_of([](MatmulArgs&, RowRange&) {}), "");
  const auto contains = [](const std::string& text, const char* part) { return text.find(part) != std::string::npos; };
  EXPECT_TRUE(contains(message_of([](MatmulArgs& a, RowRange&) { a.x_stride = 7; }), "x_stride is 7"));
  EXPECT_TRUE(contains(message_of([](MatmulArgs& a, RowRange&) { a.y_stride = 2; }), "y_stride 2"));
  EXPECT_TRUE(contains(message_of([](MatmulArgs& a, RowRange&) { a.m = -1; }), "-1"));
  EXPECT_TRUE(contains(message_of([](MatmulArgs& a, RowRange&) { a.x = nullptr; }), "x is null"));
  EXPECT_TRUE(contains(message_of([](MatmulArgs& a, RowRange&) { a.y = nullptr; }), "y is null"));
  EXPECT_TRUE(
      contains(message_of([](MatmulArgs& a, RowRange&) { a.bias_dtype = DType::kInt8; }), "bias_dtype is int8"));
  EXPECT_TRUE(contains(message_of([](MatmulArgs&, RowRange& r) { r.end = 4; }), "[0, 4)"));
}

}  // namespace
}  // namespace deepscale::kernels
