#include "platform/private_memory.h"

#include <gtest/gtest.h>

#include <utility>

#include "deepscale/error.h"

namespace deepscale {
namespace {

TEST(PrivateMemory, ReadsAsZeroCanBeWrittenAndMoved) {
  PrivateMemory memory(5'000'000);
  ASSERT_EQ(memory.bytes(), 5'000'000);
  EXPECT_EQ(memory.data()[4'999'999], 0);
  memory.data()[4'999'999] = 7;
  PrivateMemory other(1);
  other = std::move(memory);
  EXPECT_EQ(other.data()[4'999'999], 7);
  const PrivateMemory last(std::move(other));
  EXPECT_EQ(last.data()[4'999'999], 7);
}

TEST(PrivateMemory, NothingAndTooMuchAreErrors) {
  EXPECT_THROW(PrivateMemory(0), IoError);
  EXPECT_THROW(PrivateMemory(int64_t{1} << 60), IoError);
}

}  // namespace
}  // namespace deepscale
