// Shared by the tests of kernels/cpu: every SIMD target of this machine, independent scalar models of the 16-bit
// formats, buffers at odd addresses and values with corner cases in them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/kernel_table.h"

namespace deepscale::kernels::testing {

inline std::vector<CpuTarget> targets() {
  std::vector<CpuTarget> result(16);
  result.resize(available_targets(result.data(), result.size()));
  return result;
}

/// Lengths around every vector width, and primes that fit no width.
inline std::vector<int64_t> lengths() {
  std::vector<int64_t> result;
  for (int64_t n = 0; n <= 67; ++n) result.push_back(n);
  for (int64_t n : {127, 251, 1021, 1024, 1031, 2053, 4099}) result.push_back(n);
  return result;
}

inline uint32_t bits_of(float value) {
  return std::bit_cast<uint32_t>(value);
}

/// Nearest bfloat16 by comparing distances in double; ties to even; any NaN is 0x7FC0.
inline uint16_t model_to_bfloat16(float value) {
  if (std::isnan(value)) return 0x7FC0;
  const uint16_t down = static_cast<uint16_t>(bits_of(value) >> 16);
  if (std::isinf(value)) return down;
  const auto magnitude = [](uint32_t pattern) {
    pattern &= 0x7FFFu;
    return pattern == 0x7F80u ? 0x1p128 : static_cast<double>(std::bit_cast<float>(pattern << 16));
  };
  const double exact = std::fabs(static_cast<double>(value));
  const double below = exact - magnitude(down), above = magnitude(down + 1u) - exact;
  if (below == above) return static_cast<uint16_t>(down + (down & 1u));
  return static_cast<uint16_t>(below < above ? down : down + 1u);
}

inline float model_from_bfloat16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// Nearest binary16 by scaling with powers of two and rounding to an integer in double.
inline uint16_t model_to_float16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7E00u | ((bits_of(value) >> 13) & 0x1FFu));
  const double exact = std::fabs(static_cast<double>(value));
  if (exact >= 65520.0) return static_cast<uint16_t>(sign | 0x7C00u);
  const int exponent = exact < 0x1p-14 ? -14 : std::ilogb(exact);
  const double units = std::nearbyint(std::ldexp(exact, 10 - exponent));  // 1024..2048, below 1024 when subnormal
  return static_cast<uint16_t>(sign + (exponent + 14) * 1024 + static_cast<int>(units));
}

inline float model_from_float16(uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const float sign = (bits & 0x8000u) != 0 ? -1.0f : 1.0f;
  if (exponent == 31) {
    return mantissa == 0 ? sign * std::numeric_limits<float>::infinity()
                         : std::copysign(std::numeric_limits<float>::quiet_NaN(), sign);
  }
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
}

/// Elements of a float dtype at an address that is only element-aligned (offset 1 element from a 64-byte boundary
/// unless told otherwise), guarded on both sides so that a write outside is seen.
class Buffer {
 public:
  Buffer(DType dtype, int64_t numel, int64_t offset = 1) : dtype_(dtype), numel_(numel), offset_(offset) {
    blocks_.resize(static_cast<size_t>((numel + offset + kGuard) * size_of(dtype)) / sizeof(Block) + 1);
  }

  void* data() { return memory() + offset_ * size_of(dtype_); }
  const void* data() const { return const_cast<Buffer*>(this)->data(); }
  DType dtype() const { return dtype_; }
  int64_t numel() const { return numel_; }

  double get(int64_t i) const {
    switch (dtype_) {
      case DType::kBFloat16:
        return model_from_bfloat16(at<uint16_t>(i));
      case DType::kFloat16:
        return model_from_float16(at<uint16_t>(i));
      case DType::kFloat64:
        return at<double>(i);
      default:
        return at<float>(i);
    }
  }
  /// Rounds to the dtype, through fp32 where it is narrower.
  void set(int64_t i, double value) {
    switch (dtype_) {
      case DType::kBFloat16:
        return put(i, model_to_bfloat16(static_cast<float>(value)));
      case DType::kFloat16:
        return put(i, model_to_float16(static_cast<float>(value)));
      case DType::kFloat64:
        return put(i, value);
      default:
        return put(i, static_cast<float>(value));
    }
  }
  float get_float(int64_t i) const { return static_cast<float>(get(i)); }

  /// The element's bits; all NaN of a dtype compare equal, because arithmetic may pick either operand's payload.
  uint64_t bits(int64_t i) const {
    if (std::isnan(get(i))) return ~uint64_t{0};
    uint64_t result = 0;
    std::memcpy(&result, static_cast<const unsigned char*>(data()) + i * size_of(dtype_),
                static_cast<size_t>(size_of(dtype_)));
    return result;
  }

  /// False when a byte before the first or behind the last element was written.
  bool guards_intact() const {
    const auto* first = static_cast<const unsigned char*>(data());
    const auto* end = first + numel_ * size_of(dtype_);
    const auto untouched = [](unsigned char byte) { return byte == kFill; };
    return std::all_of(memory(), first, untouched) &&
           std::all_of(end, memory() + blocks_.size() * sizeof(Block), untouched);
  }

 private:
  static constexpr int64_t kGuard = 64;
  static constexpr unsigned char kFill = 0xA5;

  struct alignas(64) Block {
    unsigned char bytes[64];
    Block() { std::fill(std::begin(bytes), std::end(bytes), kFill); }
  };

  unsigned char* memory() { return blocks_.data()->bytes; }
  const unsigned char* memory() const { return blocks_.data()->bytes; }

  template <class T>
  T at(int64_t i) const {
    T value;
    std::memcpy(&value, static_cast<const unsigned char*>(data()) + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return value;
  }
  template <class T>
  void put(int64_t i, T value) {
    std::memcpy(static_cast<unsigned char*>(data()) + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
  }

  DType dtype_;
  int64_t numel_, offset_;
  std::vector<Block> blocks_;
};

/// Magnitudes over many binades and both signs; with `corners`, every seventh value is a special one.
inline std::vector<double> sample_values(int64_t numel, unsigned seed, bool corners) {
  static const double kCorners[] = {0.0,
                                    -0.0,
                                    std::numeric_limits<double>::infinity(),
                                    -std::numeric_limits<double>::infinity(),
                                    std::numeric_limits<double>::quiet_NaN(),
                                    1e-40,
                                    -1e-44,
                                    3.4e38,
                                    65504.0,
                                    -65519.0,
                                    6e-8,
                                    1e-7,
                                    1e-30};
  std::mt19937 random(seed);
  std::normal_distribution<double> mantissa(0.0, 1.0);
  std::uniform_int_distribution<int> exponent(-12, 3);
  std::vector<double> values(static_cast<size_t>(numel));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = std::ldexp(mantissa(random), exponent(random));
    if (corners && random() % 7 == 0) values[i] = kCorners[random() % std::size(kCorners)];
  }
  return values;
}

inline Buffer make_buffer(DType dtype, const std::vector<double>& values, int64_t offset = 1) {
  Buffer buffer(dtype, static_cast<int64_t>(values.size()), offset);
  for (size_t i = 0; i < values.size(); ++i) buffer.set(static_cast<int64_t>(i), values[i]);
  return buffer;
}

}  // namespace deepscale::kernels::testing
