// Sums of squares, conversions, accumulation and copies against scalar models, on every SIMD target.
#include "kernels/cpu/spans.h"

#include <gtest/gtest.h>

#include "base/environment.h"
#include "deepscale/error.h"
#include "kernels/cpu/test_support.h"

namespace deepscale::kernels {
namespace {

using testing::bits_of;
using testing::Buffer;
using testing::lengths;
using testing::make_buffer;
using testing::sample_values;
using testing::targets;

constexpr DType kFloats[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

double model_block(const Buffer& values, int64_t begin, int64_t end) {
  double lanes[16] = {};
  for (int64_t i = begin; i < end; ++i) {
    const double x = values.get(i);
    lanes[(i - begin) % 16] = std::fma(x, x, lanes[(i - begin) % 16]);
  }
  for (int half = 8; half > 0; half /= 2) {
    for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

TEST(SpansTest, SumsOfSquaresHaveTheModelsBits) {
  for (DType dtype : kFloats) {
    for (int64_t numel : lengths()) {
      const Buffer values = make_buffer(dtype, sample_values(numel, 3, false), numel % 4);
      const int64_t blocks = (numel + kNormBlock - 1) / kNormBlock;
      for (const CpuTarget& target : targets()) {
        std::vector<double> partials(static_cast<size_t>(blocks) + 1, -1.0);
        kernel_table_for(target).sum_of_squares(values.data(), dtype, numel, partials.data());
        for (int64_t b = 0; b < blocks; ++b) {
          const double expected = model_block(values, b * kNormBlock, std::min(numel, (b + 1) * kNormBlock));
          ASSERT_EQ(partials[static_cast<size_t>(b)], expected)
              << name_of(dtype) << " x " << numel << " on " << target.name;
        }
        ASSERT_EQ(partials.back(), -1.0) << "a partial too many was written";
      }
    }
  }
}

TEST(SpansTest, SumsOfSquaresPropagateInfinityAndNan) {
  for (const CpuTarget& target : targets()) {
    for (int64_t position : {0, 5, 40, 66}) {
      std::vector<float> values(67, 1.0f);
      double partial = 0;
      values[static_cast<size_t>(position)] = -std::numeric_limits<float>::infinity();
      kernel_table_for(target).sum_of_squares(values.data(), DType::kFloat32, 67, &partial);
      EXPECT_EQ(partial, std::numeric_limits<double>::infinity());
      values[static_cast<size_t>(position)] = std::numeric_limits<float>::quiet_NaN();
      kernel_table_for(target).sum_of_squares(values.data(), DType::kFloat32, 67, &partial);
      EXPECT_TRUE(std::isnan(partial));
    }
  }
}

TEST(SpansTest, WideningIsExactForEverySixteenBitPattern) {
  for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    Buffer source(dtype, 65536, 0);
    for (int i = 0; i < 65536; ++i) static_cast<uint16_t*>(source.data())[i] = static_cast<uint16_t>(i);
    for (const CpuTarget& target : targets()) {
      Buffer wide(DType::kFloat32, 65536, 0);
      kernel_table_for(target).convert({source.data(), dtype, wide.data(), DType::kFloat32, 65536, 1.0});
      for (int i = 0; i < 65536; ++i) {
        const float expected = source.get_float(i);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(wide.get_float(i)));
        } else {
          ASSERT_EQ(bits_of(wide.get_float(i)), bits_of(expected))
              << name_of(dtype) << " pattern " << i << " on " << target.name;
        }
      }
    }
  }
}

TEST(SpansTest, RoundingIsToNearestEvenAroundEverySixteenBitValue) {
  // Each high half of a float with low halves at, below and above the ties of both formats, subnormals and NaN
  // included.
  constexpr uint32_t kLow[] = {0, 1, 0x0FFF, 0x1000, 0x1001, 0x2000, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF};
  std::vector<float> values;
  for (uint32_t high = 0; high < 65536; ++high) {
    for (uint32_t low : kLow) values.push_back(std::bit_cast<float>(high << 16 | low));
  }
  const auto numel = static_cast<int64_t>(values.size());
  for (const CpuTarget& target : targets()) {
    for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      std::vector<uint16_t> narrow(values.size());
      kernel_table_for(target).convert({values.data(), DType::kFloat32, narrow.data(), dtype, numel, 1.0});
      for (size_t i = 0; i < values.size(); ++i) {
        const uint16_t expected =
            dtype == DType::kBFloat16 ? testing::model_to_bfloat16(values[i]) : testing::model_to_float16(values[i]);
        ASSERT_EQ(narrow[i], expected) << name_of(dtype) << " of bits " << bits_of(values[i]) << " on " << target.name;
      }
    }
  }
}

TEST(SpansTest, ConversionsBetweenAllDtypesHaveTheModelsBits) {
  for (DType from : kFloats) {
    for (DType to : kFloats) {
      for (int64_t numel : lengths()) {
        const Buffer source = make_buffer(from, sample_values(numel, 8, true));
        for (const float scale : {1.0f, 0.3f}) {
          const bool wide = from == DType::kFloat64 || to == DType::kFloat64;
          Buffer expected(to, numel);
          for (int64_t i = 0; i < numel; ++i) {
            expected.set(i, wide ? source.get(i) * static_cast<double>(scale) : source.get_float(i) * scale);
          }
          for (const CpuTarget& target : targets()) {
            Buffer actual(to, numel, numel % 3);
            kernel_table_for(target).convert({source.data(), from, actual.data(), to, numel, scale});
            for (int64_t i = 0; i < numel; ++i) {
              ASSERT_EQ(actual.bits(i), expected.bits(i))
                  << name_of(from) << " to " << name_of(to) << " [" << i << "] of " << numel << " on " << target.name;
            }
            ASSERT_TRUE(actual.guards_intact());
          }
        }
      }
    }
  }
}

TEST(SpansTest, AccumulationHasTheModelsBits) {
  for (DType from : kFloats) {
    for (DType to : kFloats) {
      for (int64_t numel : lengths()) {
        const bool wide = from == DType::kFloat64 || to == DType::kFloat64;
        const Buffer source = make_buffer(from, sample_values(numel, 8, true));
        const std::vector<double> start = sample_values(numel, 9, true);
        Buffer expected = make_buffer(to, start);
        for (int64_t i = 0; i < numel; ++i) {
          expected.set(i, wide ? expected.get(i) + source.get(i) : expected.get_float(i) + source.get_float(i));
        }
        for (const CpuTarget& target : targets()) {
          Buffer actual = make_buffer(to, start, numel % 3);
          kernel_table_for(target).accumulate({source.data(), from, actual.data(), to, numel, 1.0});
          for (int64_t i = 0; i < numel; ++i) {
            ASSERT_EQ(actual.bits(i), expected.bits(i))
                << name_of(from) << " into " << name_of(to) << " [" << i << "] of " << numel << " on " << target.name;
          }
          ASSERT_TRUE(actual.guards_intact());
        }
      }
    }
  }
}

TEST(SpansTest, ConvertingToTheSameDtypeCopiesEveryBit) {
  std::vector<uint32_t> source(1000), destination(1000);
  for (size_t i = 0; i < source.size(); ++i) source[i] = 0x7F800001u + static_cast<uint32_t>(i);  // signalling NaN
  convert(source.data(), DType::kFloat32, destination.data(), DType::kFloat32, 1000);
  EXPECT_EQ(source, destination);
}

TEST(SpansTest, CopiesHaveEveryByteAndNoMore) {
  for (const CpuTarget& target : targets()) {
    const KernelTable table = kernel_table_for(target);
    for (const size_t bytes :
         {size_t{0}, size_t{1}, size_t{63}, size_t{64}, size_t{65}, size_t{4097}, size_t{300001}, size_t{8388731}}) {
      for (const size_t shift : {size_t{0}, size_t{1}, size_t{13}, size_t{64}}) {
        std::vector<unsigned char> source(bytes + 64), destination(bytes + 192, 0xA5);
        for (size_t i = 0; i < source.size(); ++i) source[i] = static_cast<unsigned char>(i * 131 >> 3);
        table.copy(source.data() + 3, destination.data() + shift, static_cast<int64_t>(bytes));
        ASSERT_EQ(std::memcmp(source.data() + 3, destination.data() + shift, bytes), 0)
            << bytes << " on " << target.name;
        for (size_t i = 0; i < shift; ++i) ASSERT_EQ(destination[i], 0xA5);
        for (size_t i = shift + bytes; i < destination.size(); ++i) ASSERT_EQ(destination[i], 0xA5);
      }
    }
  }
}

TEST(SpansTest, IntegersAreNoFloats) {
  int32_t value = 0;
  double partial = 0;
  EXPECT_THROW(sum_of_squares(&value, DType::kInt32, 1, &partial), UnsupportedError);
  EXPECT_THROW(convert(&value, DType::kInt32, &value, DType::kFloat32, 1), UnsupportedError);
  EXPECT_THROW(accumulate(&value, DType::kFloat32, &value, DType::kBool, 1), UnsupportedError);
  EXPECT_THROW(copy_bytes(nullptr, &value, 4), Error);
  EXPECT_NO_THROW(copy_bytes(nullptr, nullptr, 0));
}

TEST(DispatchTest, TheTargetIsTheForcedOneOrTheBest) {
  const auto all = targets();
  ASSERT_FALSE(all.empty());
  EXPECT_STREQ(choose_target("").name, all.front().name);
  EXPECT_STREQ(choose_target(nullptr).name, all.front().name);
  for (const CpuTarget& target : all) EXPECT_STREQ(choose_target(target.name).name, target.name);
  EXPECT_STREQ(cpu_target_name(), environment("DEEPSCALE_CPU_TARGET").value_or(all.front().name).c_str());
}

TEST(DispatchTest, AnUnknownTargetIsRefusedWithTheAvailableOnes) {
  try {
    choose_target("SSE9");
    FAIL() << "no error";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("SSE9"), std::string::npos);
    EXPECT_NE(std::string(error.what()).find(targets().back().name), std::string::npos);
  }
}

}  // namespace
}  // namespace deepscale::kernels
