// Not split by operating system: cpuid and xgetbv are instructions, which any program may execute.
#include "platform/cpu_features.h"

#include <array>
#include <cstring>
#include <utility>

#if defined(__x86_64__) || defined(_M_X64)
#define DEEPSCALE_X86 1
#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace deepscale {
namespace {

constexpr std::pair<CpuFeature, const char*> kNames[] = {
    {CpuFeature::kSse3, "pni"},
    {CpuFeature::kPclmulqdq, "pclmulqdq"},
    {CpuFeature::kSsse3, "ssse3"},
    {CpuFeature::kFma, "fma"},
    {CpuFeature::kSse41, "sse4_1"},
    {CpuFeature::kSse42, "sse4_2"},
    {CpuFeature::kPopcnt, "popcnt"},
    {CpuFeature::kAes, "aes"},
    {CpuFeature::kAvx, "avx"},
    {CpuFeature::kF16c, "f16c"},
    {CpuFeature::kLzcnt, "abm"},
    {CpuFeature::kBmi1, "bmi1"},
    {CpuFeature::kAvx2, "avx2"},
    {CpuFeature::kBmi2, "bmi2"},
    {CpuFeature::kAvx512f, "avx512f"},
    {CpuFeature::kAvx512dq, "avx512dq"},
    {CpuFeature::kAvx512bw, "avx512bw"},
    {CpuFeature::kAvx512vl, "avx512vl"},
    {CpuFeature::kAvx512Vnni, "avx512_vnni"},
    {CpuFeature::kAvx512Bf16, "avx512_bf16"},
    {CpuFeature::kAvx512Fp16, "avx512_fp16"},
    {CpuFeature::kAmxTile, "amx_tile"},
    {CpuFeature::kAmxBf16, "amx_bf16"},
    {CpuFeature::kAsimd, "asimd"},
};

// Register states in XCR0.
constexpr uint64_t kAvxStates = 0x6;           // XMM, YMM
constexpr uint64_t kAvx512States = 0xE6;       // and mask registers, upper halves, upper 16
constexpr uint64_t kAmxStates = 0x60000;       // tile configuration, tile data
constexpr uint32_t kOsSavesStates = 1u << 27;  // leaf 1, ecx: xgetbv may be used

/// A feature: the bit of a word that shows it, and the states it needs.
struct Rule {
  CpuFeature feature;
  uint32_t CpuidWords::*word;
  int bit;
  uint64_t states;
};

constexpr Rule kRules[] = {
    {CpuFeature::kSse3, &CpuidWords::leaf1_ecx, 0, 0},
    {CpuFeature::kPclmulqdq, &CpuidWords::leaf1_ecx, 1, 0},
    {CpuFeature::kSsse3, &CpuidWords::leaf1_ecx, 9, 0},
    {CpuFeature::kFma, &CpuidWords::leaf1_ecx, 12, kAvxStates},
    {CpuFeature::kSse41, &CpuidWords::leaf1_ecx, 19, 0},
    {CpuFeature::kSse42, &CpuidWords::leaf1_ecx, 20, 0},
    {CpuFeature::kPopcnt, &CpuidWords::leaf1_ecx, 23, 0},
    {CpuFeature::kAes, &CpuidWords::leaf1_ecx, 25, 0},
    {CpuFeature::kAvx, &CpuidWords::leaf1_ecx, 28, kAvxStates},
    {CpuFeature::kF16c, &CpuidWords::leaf1_ecx, 29, kAvxStates},
    {CpuFeature::kLzcnt, &CpuidWords::extended1_ecx, 5, 0},
    {CpuFeature::kBmi1, &CpuidWords::leaf7_ebx, 3, 0},
    {CpuFeature::kAvx2, &CpuidWords::leaf7_ebx, 5, kAvxStates},
    {CpuFeature::kBmi2, &CpuidWords::leaf7_ebx, 8, 0},
    {CpuFeature::kAvx512f, &CpuidWords::leaf7_ebx, 16, kAvx512States},
    {CpuFeature::kAvx512dq, &CpuidWords::leaf7_ebx, 17, kAvx512States},
    {CpuFeature::kAvx512bw, &CpuidWords::leaf7_ebx, 30, kAvx512States},
    {CpuFeature::kAvx512vl, &CpuidWords::leaf7_ebx, 31, kAvx512States},
    {CpuFeature::kAvx512Vnni, &CpuidWords::leaf7_ecx, 11, kAvx512States},
    {CpuFeature::kAvx512Bf16, &CpuidWords::leaf7_1_eax, 5, kAvx512States},
    {CpuFeature::kAvx512Fp16, &CpuidWords::leaf7_edx, 23, kAvx512States},
    {CpuFeature::kAmxTile, &CpuidWords::leaf7_edx, 24, kAmxStates},
    {CpuFeature::kAmxBf16, &CpuidWords::leaf7_edx, 22, kAmxStates},
};

#ifdef DEEPSCALE_X86

/// eax, ebx, ecx, edx.
std::array<uint32_t, 4> cpuid(uint32_t leaf, uint32_t subleaf) {
  std::array<uint32_t, 4> words{};
#if defined(_MSC_VER) && !defined(__clang__)
  __cpuidex(reinterpret_cast<int*>(words.data()), static_cast<int>(leaf), static_cast<int>(subleaf));
#else
  __cpuid_count(leaf, subleaf, words[0], words[1], words[2], words[3]);
#endif
  return words;
}

uint64_t xcr0() {
#if defined(_MSC_VER) && !defined(__clang__)
  return _xgetbv(0);
#else
  uint32_t low = 0;
  uint32_t high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
#endif
}

#endif

}  // namespace

std::vector<std::string> CpuFeatures::names() const {
  std::vector<std::string> names;
  for (const auto& [feature, name] : kNames) {
    if (has(feature)) names.emplace_back(name);
  }
  return names;
}

CpuFeatures decode_cpuid(const CpuidWords& words) {
  CpuFeatures features;
  const uint64_t states = (words.leaf1_ecx & kOsSavesStates) != 0 ? words.enabled_states : 0;
  for (const Rule& rule : kRules) {
    if ((words.*rule.word >> rule.bit & 1) != 0 && (states & rule.states) == rule.states) features.add(rule.feature);
  }
  return features;
}

CpuFeatures cpu_features() {
#ifdef DEEPSCALE_X86
  CpuidWords words;
  const uint32_t last = cpuid(0, 0)[0];
  words.leaf1_ecx = cpuid(1, 0)[2];
  if (last >= 7) {
    const auto leaf7 = cpuid(7, 0);
    words.leaf7_ebx = leaf7[1];
    words.leaf7_ecx = leaf7[2];
    words.leaf7_edx = leaf7[3];
    if (leaf7[0] >= 1) words.leaf7_1_eax = cpuid(7, 1)[0];
  }
  if (cpuid(0x80000000, 0)[0] >= 0x80000001) words.extended1_ecx = cpuid(0x80000001, 0)[2];
  if ((words.leaf1_ecx & kOsSavesStates) != 0) words.enabled_states = xcr0();
  return decode_cpuid(words);
#else
  CpuFeatures features;
#if defined(__aarch64__) || defined(_M_ARM64)
  features.add(CpuFeature::kAsimd);
#endif
  return features;
#endif
}

std::string cpu_name() {
  std::string name;
#ifdef DEEPSCALE_X86
  if (cpuid(0x80000000, 0)[0] >= 0x80000004) {
    for (uint32_t leaf = 0x80000002; leaf <= 0x80000004; ++leaf) {
      const auto words = cpuid(leaf, 0);
      name.append(reinterpret_cast<const char*>(words.data()), sizeof(words));
    }
    name.resize(std::strlen(name.c_str()));
  }
#endif
  const size_t begin = name.find_first_not_of(' ');
  if (begin == std::string::npos) return {};
  return name.substr(begin, name.find_last_not_of(' ') - begin + 1);
}

}  // namespace deepscale
