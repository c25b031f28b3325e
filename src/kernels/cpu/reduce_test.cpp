// reduce_buffers against a scalar model, for every dtype, operation, number of inputs and SIMD target.
#include <gtest/gtest.h>

#include "deepscale/error.h"
#include "kernels/cpu/spans.h"
#include "kernels/cpu/test_support.h"

namespace deepscale::kernels {
namespace {

using testing::Buffer;
using testing::lengths;
using testing::make_buffer;
using testing::sample_values;
using testing::targets;

constexpr ReduceOp kOps[] = {ReduceOp::kSum, ReduceOp::kAvg, ReduceOp::kMax, ReduceOp::kMin, ReduceOp::kProduct};
constexpr DType kFloats[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};

/// One combination in T; NaN wins over everything, the earlier of equal values stays.
template <class T>
T combine(ReduceOp op, T a, T b) {
  switch (op) {
    case ReduceOp::kMax:
      return std::isnan(a) ? a : (std::isnan(b) || b > a ? b : a);
    case ReduceOp::kMin:
      return std::isnan(a) ? a : (std::isnan(b) || b < a ? b : a);
    case ReduceOp::kProduct:
      return a * b;
    default:
      return a + b;
  }
}

template <class T>
void apply_model(ReduceOp op, const std::vector<Buffer>& inputs, Buffer& output) {
  for (int64_t i = 0; i < output.numel(); ++i) {
    T value = static_cast<T>(inputs[0].get(i));
    for (size_t r = 1; r < inputs.size(); ++r) value = combine(op, value, static_cast<T>(inputs[r].get(i)));
    if (op == ReduceOp::kAvg) value *= T{1} / static_cast<T>(inputs.size());
    output.set(i, value);
  }
}

std::vector<Buffer> make_inputs(DType dtype, size_t count, int64_t numel, int64_t offset, bool corners) {
  std::vector<Buffer> inputs;
  for (size_t r = 0; r < count; ++r) {
    inputs.push_back(make_buffer(dtype, sample_values(numel, static_cast<unsigned>(50 + r), corners), offset));
  }
  return inputs;
}

enum class Outputs { kSeparate, kFirstInput, kAllInputs };

void expect_model_bits(DType dtype, ReduceOp op, size_t count, int64_t numel, Outputs where, int64_t offset = 1) {
  const std::vector<Buffer> pristine = make_inputs(dtype, count, numel, offset, /*corners=*/true);
  Buffer expected(dtype, numel);
  dtype == DType::kFloat64 ? apply_model<double>(op, pristine, expected) : apply_model<float>(op, pristine, expected);
  for (const CpuTarget& target : targets()) {
    std::vector<Buffer> inputs = pristine;
    Buffer separate(dtype, numel, offset);
    std::vector<const void*> in;
    std::vector<Buffer*> results;
    for (Buffer& input : inputs) in.push_back(input.data());
    if (where == Outputs::kSeparate) results = {&separate};
    if (where == Outputs::kFirstInput) results = {&inputs[0]};
    if (where == Outputs::kAllInputs) {
      for (Buffer& input : inputs) results.push_back(&input);
    }
    std::vector<void*> out;
    for (Buffer* result : results) out.push_back(result->data());
    kernel_table_for(target).reduce({in.data(), in.size(), out.data(), out.size(), numel, dtype, op});
    for (const Buffer* result : results) {
      for (int64_t i = 0; i < numel; ++i) {
        ASSERT_EQ(result->bits(i), expected.bits(i))
            << name_of(dtype) << " " << name_of(op) << " of " << count << " [" << i << "] of " << numel << " on "
            << target.name << ": " << result->get(i) << ", expected " << expected.get(i);
      }
      ASSERT_TRUE(result->guards_intact());
    }
  }
}

TEST(ReduceTest, FloatsOfEveryLengthHaveTheModelsBits) {
  for (DType dtype : kFloats) {
    for (ReduceOp op : kOps) {
      for (int64_t numel : lengths()) {
        for (const Outputs where : {Outputs::kSeparate, Outputs::kFirstInput, Outputs::kAllInputs}) {
          expect_model_bits(dtype, op, 2, numel, where);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(ReduceTest, AnyNumberOfInputsIsAddedInRankOrder) {
  for (DType dtype : kFloats) {
    for (ReduceOp op : kOps) {
      for (const size_t count : {1, 2, 3, 4, 5, 8, 13, 33}) {
        for (const Outputs where : {Outputs::kSeparate, Outputs::kFirstInput, Outputs::kAllInputs}) {
          expect_model_bits(dtype, op, count, 1031, where, static_cast<int64_t>(count % 5));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(ReduceTest, SpansLargeEnoughForStreamingStoresHaveTheModelsBits) {
  for (DType dtype : kFloats) {
    const int64_t numel = (int64_t{4} << 20) / size_of(dtype) + 37;
    expect_model_bits(dtype, ReduceOp::kAvg, 2, numel, Outputs::kSeparate, /*offset=*/0);  // aligned: streamed
    expect_model_bits(dtype, ReduceOp::kSum, 2, numel, Outputs::kSeparate, /*offset=*/1);
    expect_model_bits(dtype, ReduceOp::kSum, 2, numel, Outputs::kAllInputs, /*offset=*/0);
    if (HasFatalFailure()) return;
  }
}

template <class T>
void expect_integer_model(DType dtype) {
  for (ReduceOp op : kOps) {
    for (const size_t count : {1, 2, 5}) {
      for (const int64_t numel : {1, 64, 67, 1031}) {
        std::vector<std::vector<T>> inputs(count, std::vector<T>(static_cast<size_t>(numel)));
        std::mt19937_64 random(7);
        for (auto& input : inputs) {
          for (T& value : input) value = static_cast<T>(random());
        }
        if (op == ReduceOp::kAvg && sizeof(T) == 8) {
          for (auto& input : inputs) {
            for (T& value : input) value /= 16;  // no overflow of the 64-bit sum
          }
        }
        std::vector<T> expected(static_cast<size_t>(numel));
        for (size_t i = 0; i < expected.size(); ++i) {
          __int128 value = inputs[0][i];
          for (size_t r = 1; r < count; ++r) {
            const __int128 next = inputs[r][i];
            if (op == ReduceOp::kMax) value = std::max(value, next);
            if (op == ReduceOp::kMin) value = std::min(value, next);
            if (op == ReduceOp::kProduct)
              value = static_cast<int64_t>(static_cast<uint64_t>(value) * static_cast<uint64_t>(next));
            if (op == ReduceOp::kSum || op == ReduceOp::kAvg) value += next;
          }
          if (op == ReduceOp::kAvg) value /= static_cast<int>(count);
          expected[i] = static_cast<T>(value);
        }
        for (const CpuTarget& target : targets()) {
          auto buffers = inputs;
          std::vector<const void*> in;
          std::vector<void*> out;
          for (auto& buffer : buffers) {
            in.push_back(buffer.data());
            out.push_back(buffer.data());
          }
          kernel_table_for(target).reduce({in.data(), count, out.data(), count, numel, dtype, op});
          for (const auto& buffer : buffers)
            ASSERT_EQ(buffer, expected) << name_of(dtype) << " " << name_of(op) << " of " << count;
        }
      }
    }
  }
}

TEST(ReduceTest, IntegersWrapAndAveragesTruncateTowardZero) {
  expect_integer_model<int8_t>(DType::kInt8);
  expect_integer_model<uint8_t>(DType::kUInt8);
  expect_integer_model<int16_t>(DType::kInt16);
  expect_integer_model<int32_t>(DType::kInt32);
  expect_integer_model<int64_t>(DType::kInt64);
}

TEST(ReduceTest, BooleansSumToAnyAndMultiplyToAll) {
  const std::vector<uint8_t> a = {0, 0, 1, 1}, b = {0, 1, 0, 1};
  for (const auto& [op, expected] : {std::pair{ReduceOp::kSum, std::vector<uint8_t>{0, 1, 1, 1}},
                                     {ReduceOp::kMax, {0, 1, 1, 1}},
                                     {ReduceOp::kProduct, {0, 0, 0, 1}},
                                     {ReduceOp::kMin, {0, 0, 0, 1}}}) {
    std::vector<uint8_t> result(4);
    const void* const in[] = {a.data(), b.data()};
    void* const out[] = {result.data()};
    reduce_buffers(in, out, 4, DType::kBool, op);
    EXPECT_EQ(result, expected);
  }
  void* const out[] = {nullptr};
  const void* const in[] = {a.data()};
  EXPECT_THROW(reduce_buffers(in, out, 4, DType::kBool, ReduceOp::kAvg), UnsupportedError);
  EXPECT_THROW(reduce_buffers(in, out, 4, DType::kBool, ReduceOp::kSum), Error);
  EXPECT_THROW(reduce_buffers({}, out, 4, DType::kInt8, ReduceOp::kSum), Error);
}

}  // namespace
}  // namespace deepscale::kernels
