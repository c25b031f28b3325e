#include "kernels/cpu/crc32.h"

#include <array>
#include <cstring>

#include "kernels/cpu/kernel_table.h"

namespace deepscale::kernels {
namespace {

constexpr uint32_t kPolynomial = 0xEDB88320;  // bit 31 is the coefficient of x^0

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

/// Tables for eight bytes at once ("slicing by 8").
constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? kPolynomial ^ (value >> 1) : value >> 1;
    tables[0][byte] = value;
  }
  for (size_t table = 1; table < 8; ++table) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[table - 1][byte];
      tables[table][byte] = tables[0][before & 0xFF] ^ (before >> 8);
    }
  }
  return tables;
}
constexpr CrcTables kCrc = make_crc_tables();

/// The register after the bytes.
uint32_t by_tables(uint32_t state, const void* data, int64_t bytes) {
  const auto* next = static_cast<const unsigned char*>(data);
  for (; bytes >= 8; bytes -= 8, next += 8) {
    uint32_t low = 0;
    std::memcpy(&low, next, 4);
    low ^= state;
    state = kCrc[7][low & 0xFF] ^ kCrc[6][low >> 8 & 0xFF] ^ kCrc[5][low >> 16 & 0xFF] ^ kCrc[4][low >> 24] ^
            kCrc[3][next[4]] ^ kCrc[2][next[5]] ^ kCrc[1][next[6]] ^ kCrc[0][next[7]];
  }
  for (; bytes > 0; --bytes, ++next) state = kCrc[0][(state ^ *next) & 0xFF] ^ (state >> 8);
  return state;
}

/// The product of two polynomials modulo the CRC's.
uint32_t product(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (uint32_t bit = uint32_t{1} << 31; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) sum ^= b;
    b = (b & 1) != 0 ? b >> 1 ^ kPolynomial : b >> 1;
  }
  return sum;
}

}  // namespace

uint32_t crc32(const void* data, int64_t bytes, uint32_t before) {
  constexpr int64_t kWorthIt = 128;
  uint32_t state = ~before;
  const auto* const from = static_cast<const unsigned char*>(data);
  int64_t done = 0;
  if (const auto fold = kernel_table().crc32_fold; fold != nullptr && bytes >= kWorthIt) {
    uint8_t remainder[16];
    done = fold(state, data, bytes, remainder);
    state = by_tables(0, remainder, sizeof(remainder));
  }
  return ~by_tables(state, from + done, bytes - done);
}

uint32_t crc32_of_both(uint32_t first, uint32_t second, int64_t second_bytes) {
  uint32_t moved = first, power = uint32_t{1} << 23;  // x^8: a byte
  for (int64_t left = second_bytes; left > 0; left >>= 1) {
    if ((left & 1) != 0) moved = product(moved, power);
    power = product(power, power);
  }
  return moved ^ second;
}

}  // namespace deepscale::kernels
