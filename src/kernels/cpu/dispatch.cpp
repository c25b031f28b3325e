// Chooses the SIMD target of the CPU kernels, once.
#include <string>

#include "base/environment.h"
#include "base/error.h"
#include "hwy/targets.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/spans.h"

namespace deepscale::kernels {
namespace {

constexpr size_t kMaxTargets = 16;

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
  size_t count = 0;
  // Lower bits are better targets (hwy/detect_targets.h). The static target is the fallback and always runs.
  const int64_t usable = (hwy::SupportedTargets() | HWY_STATIC_TARGET) & HWY_TARGETS;
  for (int64_t rest = usable; rest != 0 && count < capacity; rest &= rest - 1) {
    const int64_t bit = rest & -rest;
    targets[count++] = {bit, hwy::TargetName(bit)};
  }
  return count;
}

size_t target_index(int64_t target) {
  hwy::ChosenTarget chosen_target;
  chosen_target.Update(target);
  return chosen_target.GetIndex();
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
