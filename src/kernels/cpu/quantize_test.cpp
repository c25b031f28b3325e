// Quantisation against a scalar model of the formulas in quantize.h, against bits that real DeepSpeed gave, and at the
// corners where the formulas would divide by zero or overflow.
#include "kernels/cpu/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "deepscale/error.h"
#include "kernels/cpu/test_support.h"

namespace deepscale::kernels {
namespace {

using testing::bits_of;
using testing::Buffer;
using testing::make_buffer;
using testing::sample_values;
using testing::targets;

constexpr DType kTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

float rounded(float value, DType dtype) {
  if (dtype == DType::kBFloat16) return testing::model_from_bfloat16(testing::model_to_bfloat16(value));
  if (dtype == DType::kFloat16) return testing::model_from_float16(testing::model_to_float16(value));
  return value;
}

float largest(DType dtype) {
  if (dtype == DType::kFloat16) return 65504.0f;
  return dtype == DType::kBFloat16 ? std::bit_cast<float>(0x7F7F0000u) : std::numeric_limits<float>::max();
}

float saturated(float value, DType dtype) {
  return std::fabs(value) > largest(dtype) ? std::copysign(largest(dtype), value) : value;
}

/// A quantised matrix with its memory, guarded and at odd addresses.
struct Quantized {
  Quantized(int64_t rows, int64_t cols, const GroupFormat& format)
      : values(DType::kUInt8, rows * row_bytes(cols, format), 3),
        scales(format.params_dtype, rows * groups_per_row(cols, format)),
        minimums(format.params_dtype, format.symmetric ? 0 : rows * groups_per_row(cols, format)) {
    matrix = {rows, cols, format, values.data(), scales.data(), format.symmetric ? nullptr : minimums.data()};
  }
  int value(int64_t row, int64_t col) const {
    const auto* bytes = static_cast<const uint8_t*>(values.data()) + row * row_bytes(matrix.cols, matrix.format);
    if (matrix.format.bits == 8) return bytes[col];
    return col % 2 == 0 ? bytes[col / 2] >> 4 : bytes[col / 2] & 15;
  }
  bool guards_intact() const { return values.guards_intact() && scales.guards_intact() && minimums.guards_intact(); }

  Buffer values, scales, minimums;
  QuantizedMatrix matrix;
};

/// The contract's formulas, element by element.
struct Model {
  float scale = 0, minimum = 0;
  bool poisoned = false;

  Model(const Buffer& weights, int64_t begin, int64_t count, const GroupFormat& format) : f(format) {
    float low = kInfinity, high = -kInfinity;
    for (int64_t i = begin; i < begin + count; ++i) {
      const float x = weights.get_float(i);
      poisoned = poisoned || !std::isfinite(x);
      low = std::min(low, x);
      high = std::max(high, x);
    }
    if (poisoned) {
      scale = minimum = kNan;
      return;
    }
    const DType p = f.params_dtype;
    float range = f.symmetric ? std::max(std::fabs(low), std::fabs(high)) : high - low;
    range = saturated(rounded(std::fabs(range), p), p);
    const auto levels = static_cast<float>(f.symmetric ? (1 << (f.bits - 1)) - 1 : (1 << f.bits) - 1);
    scale = saturated(rounded(rounded(1.0f / range, p) * levels, p), p);
    if (!f.symmetric) minimum = saturated(rounded(low, p), p) + 0.0f;
  }
  int quantize(float x) const {
    if (poisoned) return 0;
    const DType p = f.params_dtype;
    const int half = 1 << (f.bits - 1);
    const float scaled = rounded(rounded(x - minimum, p) * scale, p);
    if (f.symmetric) {
      const auto limit = static_cast<float>(half - 1);
      return static_cast<int>(std::nearbyint(std::clamp(scaled, -limit, limit))) + half;
    }
    return static_cast<int>(std::nearbyint(std::clamp(scaled, 0.0f, static_cast<float>((1 << f.bits) - 1))));
  }
  float dequantize(int q) const {
    const DType p = f.params_dtype;
    const int signed_q = f.symmetric ? q - (1 << (f.bits - 1)) : q;
    return rounded(saturated(rounded(static_cast<float>(signed_q) / scale, p), p) + minimum, p);
  }

  GroupFormat f;
};

std::string describe(const GroupFormat& f, DType dtype, int64_t cols, const char* target) {
  return std::to_string(f.bits) + " bits, groups of " + std::to_string(f.group_size) + " of " + std::to_string(cols) +
         (f.symmetric ? ", symmetric" : "") + ", " + std::string(name_of(dtype)) + " with " +
         std::string(name_of(f.params_dtype)) + " parameters on " + target;
}

void expect_model(const Buffer& weights, int64_t rows, int64_t cols, const GroupFormat& format) {
  for (const CpuTarget& target : targets()) {
    const KernelTable table = kernel_table_for(target);
    const std::string what = describe(format, weights.dtype(), cols, target.name);
    Quantized q(rows, cols, format);
    table.quantize({const_cast<void*>(weights.data()), weights.dtype(), q.matrix, {0, rows}});
    Buffer back(weights.dtype(), rows * cols, 5);
    table.dequantize({back.data(), weights.dtype(), q.matrix, {0, rows}});
    ASSERT_TRUE(q.guards_intact() && back.guards_intact()) << what;
    Buffer expected(weights.dtype(), 1), param(format.params_dtype, 1);
    const int64_t groups = groups_per_row(cols, format);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t begin = g * format.group_size, end = std::min(cols, begin + format.group_size);
        const Model model(weights, r * cols + begin, end - begin, format);
        param.set(0, model.scale);
        ASSERT_EQ(q.scales.bits(r * groups + g), param.bits(0)) << what;
        param.set(0, model.minimum);
        if (!format.symmetric) {
          ASSERT_EQ(q.minimums.bits(r * groups + g), param.bits(0)) << what;
        }
        for (int64_t c = begin; c < end; ++c) {
          ASSERT_EQ(q.value(r, c), model.quantize(weights.get_float(r * cols + c))) << what << " at " << r << ", " << c;
          expected.set(0, model.dequantize(q.value(r, c)));
          ASSERT_EQ(back.bits(r * cols + c), expected.bits(0)) << what << " at " << r << ", " << c;
        }
      }
      if (format.bits == 4 && cols % 2 != 0) {
        ASSERT_EQ(q.value(r, cols), 0) << "the last nibble, " << what;
      }
    }
  }
}

template <class Check>
void for_each_format(const Check& check) {
  for (DType dtype : kTypes) {
    for (DType params : kTypes) {
      for (int bits : {4, 8}) {
        for (bool symmetric : {false, true}) check(dtype, GroupFormat{bits, 64, symmetric, params});
      }
    }
  }
}

TEST(QuantizeTest, EveryDtypeBitWidthAndGroupSizeHasTheModelsBits) {
  for_each_format([](DType dtype, GroupFormat format) {
    for (int64_t cols : {1, 7, 16, 63, 64, 130, 517, 1100}) {
      for (int64_t group_size : {1, 3, 8, 33, 64, 128, 4096}) {
        format.group_size = group_size;
        const int64_t rows = cols < 200 ? 3 : 1;
        expect_model(make_buffer(dtype, sample_values(rows * cols, 11, false)), rows, cols, format);
        if (HasFatalFailure()) return;
      }
    }
  });
}

TEST(QuantizeTest, CornerValuesHaveTheModelsBits) {
  for_each_format([](DType dtype, GroupFormat format) {
    for (int64_t group_size : {1, 2, 5, 32}) {
      format.group_size = group_size;
      expect_model(make_buffer(dtype, sample_values(3 * 161, 12, true)), 3, 161, format);
      if (HasFatalFailure()) return;
    }
  });
}

std::vector<float> through(const std::vector<float>& values, DType dtype, const GroupFormat& format) {
  const auto cols = static_cast<int64_t>(values.size());
  const Buffer weights = make_buffer(dtype, {values.begin(), values.end()});
  Quantized q(1, cols, format);
  quantize_groups(weights.data(), dtype, q.matrix, {0, 1});
  Buffer back(dtype, cols);
  dequantize_groups(q.matrix, back.data(), dtype, {0, 1});
  std::vector<float> result;
  for (int64_t i = 0; i < cols; ++i) result.push_back(back.get_float(i));
  return result;
}

TEST(QuantizeTest, AConstantGroupComesBackExactly) {
  for_each_format([](DType dtype, const GroupFormat& format) {
    if (size_of(format.params_dtype) < size_of(dtype)) return;
    for (float constant : {0.0f, 0.3f, -0.3f, 60000.0f, -1e-3f, 6e-8f}) {
      const float x = rounded(rounded(constant, dtype), format.params_dtype);
      const std::vector<float> back = through(std::vector<float>(77, x), dtype, format);
      for (float y : back) {
        if (format.symmetric) {
          EXPECT_NEAR(y, x, std::fabs(x) * 0.02f + 0.5f / largest(format.params_dtype))
              << describe(format, dtype, 77, "the best target");
        } else {
          EXPECT_EQ(y, rounded(x, dtype)) << describe(format, dtype, 77, "the best target");
        }
      }
    }
  });
}

TEST(QuantizeTest, AnInfinityOrNanPoisonsItsGroupOnly) {
  for_each_format([](DType dtype, GroupFormat format) {
    format.group_size = 21;
    for (float bad : {kInfinity, -kInfinity, kNan}) {
      std::vector<float> values(63, 0.5f);
      for (size_t i = 0; i < values.size(); i += 2) values[i] = -0.25f;
      values[21 + 17] = bad;
      const std::vector<float> back = through(values, dtype, format);
      for (size_t i = 0; i < back.size(); ++i) {
        EXPECT_EQ(std::isnan(back[i]), i / 21 == 1) << describe(format, dtype, 63, "the best target") << " at " << i;
      }
    }
  });
}

TEST(QuantizeTest, ErrorsStayWithinHalfAStepAlsoWhereDeepSpeedOverflows) {
  // fp16: 255 / 0.001 and 1 / 120000 are beyond fp16; fp32: a subnormal range and one of twice the largest number.
  struct Case {
    DType dtype;
    float low, high, tolerance;
  };
  for (const Case& c :
       {Case{DType::kFloat16, 0.0f, 0.001f, 8e-6f}, Case{DType::kFloat32, 0.0f, 1e-39f, 1.5e-39f},
        Case{DType::kFloat32, -1e-3f, 2e-3f, 6e-6f}, Case{DType::kFloat16, -30000.0f, 30000.0f, 150.0f}}) {
    std::vector<float> values;
    for (int i = 0; i <= 40; ++i) {
      values.push_back(rounded(c.low + (c.high - c.low) * static_cast<float>(i) / 40.0f, c.dtype));
    }
    const std::vector<float> back = through(values, c.dtype, {8, 64, false, c.dtype});
    for (size_t i = 0; i < back.size(); ++i) EXPECT_NEAR(back[i], values[i], c.tolerance) << name_of(c.dtype);
  }
  for (const auto& [dtype, huge] :
       {std::pair{DType::kFloat16, 60000.0f}, std::pair{DType::kFloat32, 3e38f}, std::pair{DType::kBFloat16, 3e38f}}) {
    for (bool symmetric : {false, true}) {
      for (float y : through({-huge, 0.0f, huge}, dtype, {8, 64, symmetric, dtype})) EXPECT_TRUE(std::isfinite(y));
      EXPECT_EQ(through({-huge, 0.0f, huge}, dtype, {8, 64, symmetric, dtype})[0] < 0, true);
    }
  }
}

TEST(QuantizeTest, AnInfiniteScaleGivesTheMinimum) {
  for (DType params : kTypes) {
    Quantized q(1, 10, {4, 5, false, params});
    for (int64_t g = 0; g < 2; ++g) {
      q.scales.set(g, kInfinity);
      q.minimums.set(g, g == 0 ? 0.25 : -1.5);
    }
    for (int64_t i = 0; i < 5; ++i) static_cast<uint8_t*>(q.values.data())[i] = 0x5F;
    Buffer back(DType::kFloat32, 10);
    dequantize_groups(q.matrix, back.data(), DType::kFloat32, {0, 1});
    for (int64_t i = 0; i < 10; ++i) EXPECT_EQ(back.get(i), i < 5 ? 0.25 : -1.5);
  }
}

TEST(QuantizeTest, RowRangesWriteTheirRowsOnly) {
  const GroupFormat format{4, 16, false, DType::kBFloat16};
  const int64_t rows = 7, cols = 45;
  const Buffer weights = make_buffer(DType::kBFloat16, sample_values(rows * cols, 3, false));
  Quantized whole(rows, cols, format), parts(rows, cols, format), middle(rows, cols, format);
  quantize_groups(weights.data(), DType::kBFloat16, whole.matrix, {0, rows});
  for (int64_t r : {4, 0, 6, 2, 5, 1, 3}) quantize_groups(weights.data(), DType::kBFloat16, parts.matrix, {r, r + 1});
  quantize_groups(weights.data(), DType::kBFloat16, middle.matrix, {2, 4});
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      EXPECT_EQ(parts.value(r, c), whole.value(r, c));
      if (r == 2 || r == 3) {
        EXPECT_EQ(middle.value(r, c), whole.value(r, c));
      } else {
        EXPECT_EQ(middle.value(r, c), c % 2 == 0 ? 0xA : 0x5) << "row " << r << " is not its own";
      }
    }
  }
}

TEST(QuantizeTest, UnusableArgumentsAreNamed) {
  float weights[8] = {};
  Quantized q(1, 8, {8, 4, false, DType::kFloat32});
  const auto message_of = [&](QuantizedMatrix matrix, DType dtype, RowRange rows, const void* memory) -> std::string {
    try {
      quantize_groups(memory, dtype, matrix, rows);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const auto with = [&](auto change) {
    QuantizedMatrix matrix = q.matrix;
    change(matrix);
    return message_of(matrix, DType::kFloat32, {0, 1}, weights);
  };
  EXPECT_EQ(with([](QuantizedMatrix&) {}), "");
  EXPECT_NE(with([](QuantizedMatrix& m) { m.format.bits = 3; }).find("bits is 3"), std::string::npos);
  EXPECT_NE(with([](QuantizedMatrix& m) { m.format.group_size = 0; }).find("group_size is 0"), std::string::npos);
  EXPECT_NE(with([](QuantizedMatrix& m) { m.format.params_dtype = DType::kInt8; }).find("params_dtype is int8"),
            std::string::npos);
  EXPECT_NE(with([](QuantizedMatrix& m) { m.minimums = nullptr; }).find("minimums is null"), std::string::npos);
  EXPECT_NE(with([](QuantizedMatrix& m) { m.cols = -1; }).find("[1, -1]"), std::string::npos);
  EXPECT_NE(message_of(q.matrix, DType::kFloat64, {0, 1}, weights).find("float64"), std::string::npos);
  EXPECT_NE(message_of(q.matrix, DType::kFloat32, {0, 2}, weights).find("[0, 2)"), std::string::npos);
  EXPECT_NE(message_of(q.matrix, DType::kFloat32, {0, 1}, nullptr).find("weights is null"), std::string::npos);
  EXPECT_EQ(message_of(q.matrix, DType::kFloat32, {1, 1}, nullptr), "");
}

}  // namespace
}  // namespace deepscale::kernels
