#include "memory/residency.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace deepscale {
namespace {

std::vector<int> residents(const Residency& residency, int parts) {
  std::vector<int> found;
  for (int part = 0; part < parts; ++part) {
    if (residency.resident(part)) found.push_back(part);
  }
  return found;
}

TEST(Residency, KeepsWhatFitsAboveTheReserve) {
  Residency residency(std::vector<int64_t>(10, 100));
  residency.adapt(/*available=*/650, /*reserve=*/200);
  EXPECT_EQ(residency.resident_bytes(), 400);
  EXPECT_EQ(residents(residency, 10).size(), 4u);
}

TEST(Residency, SpreadsWhatStaysOverTheCycle) {
  Residency residency(std::vector<int64_t>(16, 100));
  residency.adapt(400, 0);
  EXPECT_EQ(residents(residency, 16), (std::vector<int>{0, 4, 8, 12}));
}

TEST(Residency, KeepsEverythingWhenEverythingFits) {
  Residency residency({5, 0, 7, 9, 1});
  residency.adapt(1000, 10);
  EXPECT_EQ(residents(residency, 5), (std::vector<int>{0, 2, 3, 4}));
  EXPECT_EQ(residency.resident_bytes(), 22);
}

TEST(Residency, GivesUpOnlyWhenHalfOfTheReserveIsGone) {
  Residency residency(std::vector<int64_t>(8, 100));
  residency.adapt(700, 200);
  EXPECT_EQ(residency.resident_bytes(), 500);
  residency.adapt(150, 200);
  EXPECT_EQ(residency.resident_bytes(), 500);
  residency.adapt(90, 200);
  EXPECT_EQ(residency.resident_bytes(), 400);
}

TEST(Residency, LargerBudgetsOnlyAddParts) {
  std::vector<int> before;
  for (int64_t budget = 0; budget <= 1300; budget += 100) {
    Residency residency(std::vector<int64_t>(13, 100));
    residency.adapt(budget, 0);
    const std::vector<int> now = residents(residency, 13);
    EXPECT_TRUE(std::includes(now.begin(), now.end(), before.begin(), before.end()));
    EXPECT_EQ(static_cast<int64_t>(now.size()), budget / 100);
    before = now;
  }
}

TEST(Residency, NothingFitsNothingStays) {
  Residency residency({100, 100});
  residency.adapt(-50, 100);
  EXPECT_EQ(residency.resident_bytes(), 0);
}

}  // namespace
}  // namespace deepscale
