// fma and fmaf for mingw-w64, whose own round twice (they multiply and add in 80 bits). With these in the program, the
// linker does not take the library's. Speed does not matter: kernels for real processors use their instruction.
#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

using Wide = unsigned __int128;

/// A number as significand * 2^exponent, the significand with 53 bits.
struct Parts {
  uint64_t significand = 0;
  int exponent = 0;
  bool negative = false;
};

Parts parts_of(double value) {
  Parts parts;
  const double fraction = std::frexp(value, &parts.exponent);
  parts.significand = static_cast<uint64_t>(std::ldexp(std::fabs(fraction), 53));
  parts.exponent -= 53;
  parts.negative = std::signbit(value);
  return parts;
}

/// value / 2^shift; the last bit is set when anything was lost.
Wide shifted_down(Wide value, int shift) {
  if (shift <= 0) return value;
  if (shift >= 128) return value != 0 ? 1 : 0;
  const Wide kept = value >> shift;
  return kept | ((kept << shift) != value ? 1 : 0);
}

/// value * 2^exponent, rounded to nearest, ties to even. value > 0.
double rounded(Wide value, int exponent) {
  int top = 127;
  while ((value >> top) == 0) --top;
  // Subnormal results have fewer bits.
  const int magnitude = exponent + top;
  const int bits = magnitude >= -1022 ? 53 : 53 - (-1022 - magnitude);
  const int drop = top + 1 - bits;
  if (drop <= 0) return std::ldexp(static_cast<double>(value), exponent);
  // One bit for the half and one for all below it.
  const auto kept = static_cast<uint64_t>(drop <= 2 ? value << (2 - drop) : shifted_down(value, drop - 2));
  uint64_t whole = kept >> 2;
  const uint64_t rest = kept & 3;
  if (rest > 2 || (rest == 2 && (whole & 1) != 0)) ++whole;
  return std::ldexp(static_cast<double>(whole), exponent + drop);
}

}  // namespace

extern "C" double fma(double a, double b, double c) {
  if (!std::isfinite(a) || !std::isfinite(b) || !std::isfinite(c) || a == 0 || b == 0) return a * b + c;
  if (c == 0) return a * b;
  const Parts x = parts_of(a);
  const Parts y = parts_of(b);
  const Parts z = parts_of(c);
  // The product has 105 or 106 bits; 20 more below it make room for what the sum may cancel.
  constexpr int kRoom = 20;
  constexpr int kMostShift = 73;  // 53 bits so far up leave one for the carry
  Wide product = Wide{x.significand} * y.significand << kRoom;
  int exponent = x.exponent + y.exponent - kRoom;
  Wide addend = z.significand;
  const int ahead = z.exponent - exponent;
  if (ahead > kMostShift) {
    product = shifted_down(product, ahead - kMostShift);
    exponent += ahead - kMostShift;
    addend <<= kMostShift;
  } else if (ahead >= 0) {
    addend <<= ahead;
  } else {
    addend = shifted_down(addend, -ahead);
  }
  const bool product_negative = x.negative != y.negative;
  if (product_negative == z.negative) {
    const double sum = rounded(product + addend, exponent);
    return z.negative ? -sum : sum;
  }
  if (product == addend) return 0.0;
  const bool product_wins = product > addend;
  const double difference = rounded(product_wins ? product - addend : addend - product, exponent);
  return (product_wins ? product_negative : z.negative) ? -difference : difference;
}

extern "C" float fmaf(float a, float b, float c) {
  // The product of floats is exact in double. The sum is rounded to odd, after which rounding to float is as of the
  // exact sum (Boldo, Melquiond: "Emulation of FMA and correctly rounded sums", 2008).
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = c;
  double sum = product + addend;
  const double other = sum - product;
  const double lost = (product - (sum - other)) + (addend - other);
  int64_t bits = 0;
  std::memcpy(&bits, &sum, sizeof(bits));
  if (std::isfinite(sum) && lost != 0 && (bits & 1) == 0) {
    bits += (lost > 0) == (sum > 0) ? 1 : -1;
    std::memcpy(&sum, &bits, sizeof(bits));
  }
  return static_cast<float>(sum);
}
