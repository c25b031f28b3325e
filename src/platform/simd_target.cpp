#include "platform/simd_target.h"

#include <algorithm>
#include <initializer_list>

namespace deepscale {

std::vector<std::string_view> usable_simd_targets(const CpuFeatures& features) {
  using enum CpuFeature;
  const auto all = [&](std::initializer_list<CpuFeature> needs) {
    return std::all_of(needs.begin(), needs.end(), [&](CpuFeature feature) { return features.has(feature); });
  };
  std::vector<std::string_view> names;
  const bool avx2 =
      all({kSse3, kSsse3, kSse41, kSse42, kPopcnt, kAes, kPclmulqdq, kAvx, kAvx2, kBmi1, kBmi2, kLzcnt, kFma, kF16c});
  if (avx2 && all({kAvx512f, kAvx512vl, kAvx512dq, kAvx512bw})) names.emplace_back("AVX3");
  if (avx2) names.emplace_back("AVX2");
  if (features.has(kAsimd)) names.emplace_back("NEON");
  names.emplace_back("SCALAR");
  return names;
}

}  // namespace deepscale
