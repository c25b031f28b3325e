// Chooses the SIMD target of the CPU kernels, once.
#include <algorithm>
#include <array>
#include <optional>
#include <string>

#include "base/environment.h"
#include "base/error.h"
#include "hwy/detect_targets.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/spans.h"
#include "platform/cpu_features.h"

namespace deepscale::kernels {
namespace {

constexpr size_t kMaxTargets = 16;

/// A target, and all that Highway lets the compiler use for it (HWY_TARGET_STR in hwy/ops/set_macros-inl.h).
struct TargetRule {
  CpuTarget target;
  std::array<std::optional<CpuFeature>, 18> needs;
};

using enum CpuFeature;

/// Best first.
constexpr TargetRule kTargets[] = {
#if HWY_ARCH_X86
    {{HWY_AVX3, "AVX3"},
     {kSse3, kSsse3, kSse41, kSse42, kPopcnt, kAes, kPclmulqdq, kAvx, kAvx2, kBmi1, kBmi2, kLzcnt, kFma, kF16c,
      kAvx512f, kAvx512vl, kAvx512dq, kAvx512bw}},
    {{HWY_AVX2, "AVX2"},
     {kSse3, kSsse3, kSse41, kSse42, kPopcnt, kAes, kPclmulqdq, kAvx, kAvx2, kBmi1, kBmi2, kLzcnt, kFma, kF16c}},
#elif HWY_ARCH_ARM
    {{HWY_NEON, "NEON"}, {kAsimd}},
#endif
    {{HWY_SCALAR, "SCALAR"}, {}},
};

struct Chosen {
  CpuTarget target;
  KernelTable table;
};

const Chosen& chosen() {
  static const Chosen kChosen = [] {
    const CpuTarget target = choose_target(environment("DEEPSCALE_CPU_TARGET").value_or("").c_str());
    return Chosen{target, kernel_table_for(target)};
  }();
  return kChosen;
}

}  // namespace

size_t available_targets(CpuTarget* targets, size_t capacity) {
  const CpuFeatures features = cpu_features();
  size_t count = 0;
  for (const TargetRule& rule : kTargets) {
    const bool built = (rule.target.bit & HWY_TARGETS) != 0;
    // What the compiler may use everywhere needs no question.
    const bool usable = rule.target.bit == HWY_STATIC_TARGET ||
                        std::all_of(rule.needs.begin(), rule.needs.end(), [&](std::optional<CpuFeature> feature) {
                          return !feature || features.has(*feature);
                        });
    if (built && usable && count < capacity) targets[count++] = rule.target;
  }
  return count;
}

KernelTable kernel_table_for(const CpuTarget& target) {
  KernelTable table{};
  fill_optimizer_kernels(target.bit, table);
  fill_reduce_kernels(target.bit, table);
  fill_span_kernels(target.bit, table);
  return table;
}

CpuTarget choose_target(const char* forced) {
  CpuTarget targets[kMaxTargets];
  const size_t count = available_targets(targets, kMaxTargets);
  const std::string wanted = forced == nullptr ? "" : forced;
  if (wanted.empty()) return targets[0];
  std::string names;
  for (size_t i = 0; i < count; ++i) {
    if (wanted == targets[i].name) return targets[i];
    names += (i == 0 ? "" : ", ") + std::string(targets[i].name);
  }
  ds_throw<ConfigError>(
      "environment variable DEEPSCALE_CPU_TARGET is \"{}\"; this CPU and build have {}; correct or unset it", wanted,
      names);
}

const KernelTable& kernel_table() {
  return chosen().table;
}

const char* cpu_target_name() {
  return chosen().target.name;
}

}  // namespace deepscale::kernels
