// The choice of the SIMD target, compared with Highway's own where its compiled part is installed.
#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "deepscale/error.h"
#include "kernels/cpu/test_support.h"
#ifdef DEEPSCALE_HAVE_LIBHWY
#include "hwy/targets.h"
#endif

namespace deepscale::kernels {
namespace {

TEST(Dispatch, TargetsAreBestFirstAndTheFallbackIsAlwaysThere) {
  const auto targets = testing::targets();
  ASSERT_FALSE(targets.empty());
  EXPECT_TRUE(std::is_sorted(targets.begin(), targets.end(),
                             [](const CpuTarget& a, const CpuTarget& b) { return a.bit < b.bit; }));
  const std::string last = targets.back().name;
  EXPECT_TRUE(last == "SCALAR" || last == "NEON") << last;
  for (const CpuTarget& target : targets) {
    EXPECT_STREQ(choose_target(target.name).name, target.name);
    EXPECT_NE(kernel_table_for(target).adam, nullptr);
  }
  EXPECT_STREQ(choose_target("").name, targets.front().name);
  EXPECT_THROW(choose_target("AVX9000"), ConfigError);
}

TEST(Dispatch, EveryTargetHasItsOwnKernels) {
  const auto targets = testing::targets();
  for (size_t i = 1; i < targets.size(); ++i) {
    EXPECT_NE(kernel_table_for(targets[i]).adam, kernel_table_for(targets[i - 1]).adam) << targets[i].name;
  }
}

#ifdef DEEPSCALE_HAVE_LIBHWY
TEST(Dispatch, AgreesWithHighwaysOwnDetection) {
  for (const CpuTarget& target : testing::targets()) {
    EXPECT_STREQ(target.name, hwy::TargetName(target.bit));
  }
  int64_t ours = 0;
  for (const CpuTarget& target : testing::targets()) ours |= target.bit;
#if HWY_ARCH_X86
  EXPECT_EQ(ours & (HWY_AVX2 | HWY_AVX3), hwy::SupportedTargets() & (HWY_AVX2 | HWY_AVX3));
#else
  EXPECT_EQ(ours & HWY_NEON, hwy::SupportedTargets() & HWY_NEON);
#endif
}
#endif

}  // namespace
}  // namespace deepscale::kernels
