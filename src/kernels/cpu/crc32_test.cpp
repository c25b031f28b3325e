// crc32 against a bit-by-bit model, for every length around the kernels' steps and every SIMD target.
#include "kernels/cpu/crc32.h"

#include <gtest/gtest.h>

#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/test_support.h"

namespace deepscale::kernels {
namespace {

uint32_t model_state(uint32_t state, const uint8_t* data, int64_t bytes) {
  for (int64_t i = 0; i < bytes; ++i) {
    state ^= data[i];
    for (int bit = 0; bit < 8; ++bit) state = (state & 1) != 0 ? 0xEDB88320 ^ (state >> 1) : state >> 1;
  }
  return state;
}

std::vector<uint8_t> some_bytes(int64_t count) {
  std::vector<uint8_t> bytes(count);
  uint32_t value = 12345;
  for (uint8_t& byte : bytes) {
    value = value * 1664525 + 1013904223;
    byte = static_cast<uint8_t>(value >> 24);
  }
  return bytes;
}

TEST(Crc32, IsTheStandards) {
  EXPECT_EQ(crc32("123456789", 9), 0xCBF43926u);
  EXPECT_EQ(crc32("", 0), 0u);
  EXPECT_EQ(crc32("456789", 6, crc32("123", 3)), 0xCBF43926u);
}

TEST(Crc32, EveryLengthAndPlaceIsTheModels) {
  const std::vector<uint8_t> bytes = some_bytes(1100);
  for (int64_t begin : {0, 1, 7, 33}) {
    for (int64_t length = 0; length + begin <= 1100; length += length < 300 ? 1 : 37) {
      const uint32_t before = length % 2 == 0 ? 0 : 0xDEADBEEF;
      EXPECT_EQ(crc32(bytes.data() + begin, length, before), ~model_state(~before, bytes.data() + begin, length))
          << begin << " " << length;
    }
  }
}

TEST(Crc32, EveryTargetFoldsToTheSameRemainder) {
  const std::vector<uint8_t> bytes = some_bytes(1000);
  for (const CpuTarget& target : testing::targets()) {
    const KernelTable table = kernel_table_for(target);
    if (table.crc32_fold == nullptr) continue;
    for (int64_t length : {64, 65, 127, 128, 191, 640, 1000}) {
      uint8_t remainder[16];
      const int64_t used = table.crc32_fold(0x1234567, bytes.data(), length, remainder);
      EXPECT_EQ(used, length / 64 * 64);
      EXPECT_EQ(model_state(0, remainder, 16), model_state(0x1234567, bytes.data(), used))
          << target.name << " " << length;
    }
  }
}

TEST(Crc32, OfBothIsThatOfTheWhole) {
  const std::vector<uint8_t> bytes = some_bytes(5000);
  const uint32_t whole = crc32(bytes.data(), 5000);
  for (int64_t cut : {0, 1, 2, 63, 64, 999, 4096, 4999, 5000}) {
    EXPECT_EQ(crc32_of_both(crc32(bytes.data(), cut), crc32(bytes.data() + cut, 5000 - cut), 5000 - cut), whole) << cut;
  }
}

}  // namespace
}  // namespace deepscale::kernels
