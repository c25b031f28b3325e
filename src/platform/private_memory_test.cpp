#include "platform/private_memory.h"

#include <gtest/gtest.h>

#include <utility>

#include "deepscale/error.h"
#include "platform/kept_memory.h"

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

TEST(KeptMemory, GivesWhatItKeptToWhoeverNeedsNoMore) {
  KeptMemory kept;
  char* place = nullptr;
  {
    const BorrowedMemory first(&kept, 3'000'000);
    place = first.data();
    place[2'999'999] = 7;
    const BorrowedMemory second(&kept, 1'000'000);  // while the other is out
    EXPECT_NE(second.data(), place);
  }
  // Of the two that came back the larger one was kept, as it was left.
  const BorrowedMemory again(&kept, 2'000'000);
  EXPECT_EQ(again.data(), place);
  EXPECT_EQ(again.data()[2'999'999], 7);
}

TEST(KeptMemory, WhatIsPreparedIsFoundAndHoldsWhatIsWrittenMeanwhile) {
  constexpr int64_t kBytes = 40'000'000;
  KeptMemory kept;
  kept.prepare(kBytes);
  kept.prepare(1000);  // is there
  {
    const BorrowedMemory memory(&kept, kBytes);
    for (int64_t i = 0; i < kBytes; i += 4096) memory.data()[i] = static_cast<char>(i / 4096 % 100 + 1);
  }
  const BorrowedMemory again(&kept, kBytes);
  int64_t wrong = 0;
  for (int64_t i = 0; i < kBytes; i += 4096) wrong += again.data()[i] != static_cast<char>(i / 4096 % 100 + 1);
  EXPECT_EQ(wrong, 0);
}

TEST(KeptMemory, MayGoOrBeReplacedWhileItIsPrepared) {
  for (int i = 0; i < 20; ++i) {
    KeptMemory kept;
    kept.prepare(20'000'000);
    if (i % 2 == 0) continue;
    const BorrowedMemory larger(&kept, 30'000'000);
    EXPECT_EQ(larger.data()[29'999'999], 0);
  }
}

TEST(KeptMemory, MoreThanItKeptIsNew) {
  KeptMemory kept;
  { const BorrowedMemory small(&kept, 4096); }
  const BorrowedMemory large(&kept, 5'000'000);
  EXPECT_EQ(large.data()[4'999'999], 0);
  const BorrowedMemory own(nullptr, 4096);
  EXPECT_EQ(own.data()[4095], 0);
}

}  // namespace
}  // namespace deepscale
