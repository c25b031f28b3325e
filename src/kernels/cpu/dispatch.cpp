// Chooses the SIMD target of the CPU kernels, once.
#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "base/environment.h"
#include "base/error.h"
#include "hwy/detect_targets.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/spans.h"
#include "platform/simd_target.h"

namespace deepscale::kernels {
namespace {

constexpr size_t kMaxTargets = 16;

/// What Highway can compile here, best first.
constexpr CpuTarget kTargets[] = {
#if HWY_ARCH_X86
    {HWY_AVX3, "AVX3"},
    {HWY_AVX2, "AVX2"},
#elif HWY_ARCH_ARM
    {HWY_NEON, "NEON"},
#endif
    {HWY_SCALAR, "SCALAR"},
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
  const std::vector<std::string_view> usable = usable_simd_targets(cpu_features());
  size_t count = 0;
  for (const CpuTarget& target : kTargets) {
    const bool built = (target.bit & HWY_TARGETS) != 0;
    // What the compiler may use everywhere needs no question.
    const bool runs = target.bit == HWY_STATIC_TARGET ||
                      std::find(usable.begin(), usable.end(), std::string_view(target.name)) != usable.end();
    if (built && runs && count < capacity) targets[count++] = target;
  }
  return count;
}

KernelTable kernel_table_for(const CpuTarget& target) {
  KernelTable table{};
  fill_crc32_kernels(target.bit, table);
  fill_optimizer_kernels(target.bit, table);
  fill_matmul_kernels(target.bit, table);
  if (std::string_view(target.name) == "AVX3" && cpu_features().has(CpuFeature::kAvx512Bf16)) {
    fill_matmul_bfloat16_kernels(table);
  }
  fill_quantize_kernels(target.bit, table);
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
