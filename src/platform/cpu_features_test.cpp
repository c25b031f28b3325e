#include "platform/cpu_features.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>

namespace deepscale {
namespace {

constexpr uint32_t kAll = 0xFFFFFFFF;

CpuidWords everything() {
  return {kAll, kAll, kAll, kAll, kAll, kAll, ~uint64_t{0}};
}

TEST(CpuFeatures, EverythingIsThereWhenProcessorAndSystemHaveIt) {
  const CpuFeatures all = decode_cpuid(everything());
  for (int feature = 0; feature < static_cast<int>(CpuFeature::kAsimd); ++feature) {
    EXPECT_TRUE(all.has(static_cast<CpuFeature>(feature))) << feature;
  }
  EXPECT_FALSE(all.has(CpuFeature::kAsimd)) << "that is another processor's";
  EXPECT_TRUE(decode_cpuid({}).names().empty());
}

TEST(CpuFeatures, WhatTheSystemDoesNotSaveMayNotBeUsed) {
  CpuidWords words = everything();
  words.enabled_states = 0x7;  // an old kernel: x87, XMM, YMM
  CpuFeatures features = decode_cpuid(words);
  EXPECT_TRUE(features.has(CpuFeature::kAvx2));
  EXPECT_FALSE(features.has(CpuFeature::kAvx512f));
  EXPECT_FALSE(features.has(CpuFeature::kAmxTile));
  words.enabled_states = 0x3;
  features = decode_cpuid(words);
  EXPECT_FALSE(features.has(CpuFeature::kAvx));
  EXPECT_FALSE(features.has(CpuFeature::kFma));
  EXPECT_TRUE(features.has(CpuFeature::kSse42));
  words = everything();
  words.leaf1_ecx &= ~(1u << 27);  // the system has not switched XSAVE on: XCR0 means nothing
  EXPECT_FALSE(decode_cpuid(words).has(CpuFeature::kAvx2));
}

TEST(CpuFeatures, EachComesFromItsOwnBit) {
  CpuidWords words;
  words.leaf7_ebx = 1u << 5;
  words.leaf1_ecx = 1u << 27;
  words.enabled_states = 0x7;
  EXPECT_EQ(decode_cpuid(words).names(), std::vector<std::string>{"avx2"});
  words.leaf7_ebx = 1u << 8;
  EXPECT_EQ(decode_cpuid(words).names(), std::vector<std::string>{"bmi2"});
}

TEST(CpuFeatures, AreWhatLinuxSaysWhereThereIsLinux) {
  std::ifstream file("/proc/cpuinfo");
  std::set<std::string> words;
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("flags") && !line.starts_with("Features")) continue;
    std::istringstream stream(line.substr(line.find(':') + 1));
    for (std::string word; stream >> word;) words.insert(word);
    break;
  }
  const std::vector<std::string> names = cpu_features().names();
  EXPECT_FALSE(names.empty());
  if (words.empty()) GTEST_SKIP() << "no /proc/cpuinfo to compare with";
  std::vector<std::string> expected;  // ours, of those that Linux names
  CpuFeatures ours = decode_cpuid(everything());
  ours.add(CpuFeature::kAsimd);
  for (const std::string& name : ours.names()) {
    if (words.contains(name)) expected.push_back(name);
  }
  EXPECT_EQ(names, expected);
}

}  // namespace
}  // namespace deepscale
