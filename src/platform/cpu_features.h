// Instruction sets that programs may use here: those that the processor has and whose registers the operating system
// saves. x86-64: cpuid and xgetbv (Intel SDM volume 1, 13.3 and 14.3; AMD APM volume 3, appendix E). AArch64: Advanced
// SIMD, which every such processor has. Threads: any.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace deepscale {

enum class CpuFeature : uint8_t {
  kSse3,
  kPclmulqdq,
  kSsse3,
  kFma,
  kSse41,
  kSse42,
  kPopcnt,
  kAes,
  kAvx,
  kF16c,
  kLzcnt,
  kBmi1,
  kAvx2,
  kBmi2,
  kAvx512f,
  kAvx512dq,
  kAvx512bw,
  kAvx512vl,
  kAvx512Vnni,
  kAvx512Bf16,
  kAvx512Fp16,
  kAmxTile,
  kAmxBf16,
  kAsimd,
};

class CpuFeatures {
 public:
  [[nodiscard]] bool has(CpuFeature feature) const { return (bits_ >> static_cast<int>(feature) & 1) != 0; }
  void add(CpuFeature feature) { bits_ |= uint32_t{1} << static_cast<int>(feature); }
  /// Names as Linux gives them in /proc/cpuinfo, for instance "avx2", "avx512bw".
  [[nodiscard]] std::vector<std::string> names() const;

  bool operator==(const CpuFeatures&) const = default;

 private:
  uint32_t bits_ = 0;
};

/// What cpuid and xgetbv answered on an x86-64 processor; 0 where a leaf does not exist.
struct CpuidWords {
  uint32_t leaf1_ecx = 0;
  uint32_t leaf7_ebx = 0;
  uint32_t leaf7_ecx = 0;
  uint32_t leaf7_edx = 0;
  uint32_t leaf7_1_eax = 0;     ///< leaf 7, subleaf 1
  uint32_t extended1_ecx = 0;   ///< leaf 0x80000001
  uint64_t enabled_states = 0;  ///< XCR0
};

/// Pure, for tests.
CpuFeatures decode_cpuid(const CpuidWords& words);

/// Of the processor that this runs on. Takes under a microsecond, some dozens inside a virtual machine.
CpuFeatures cpu_features();

/// The processor's name for people, without spaces around it; empty when it cannot be found out.
std::string cpu_name();

}  // namespace deepscale
