// The long part of a CRC-32 by carry-less multiplication: V. Gopal et al., "Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ Instruction", Intel 2009. 64 bytes are held as four 128-bit remainders; multiplying one
// by a power of x modulo the polynomial moves it over the bytes that follow, to which it is added. The powers, bits
// reflected: x^(512+64) and x^512 for a step of 64 bytes, x^(128+64) and x^128 for one of 16 (each shifted by the one
// bit that a product of reflected numbers is short of).
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/crc32_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR  // elsewhere the instruction is an option of the processor

using Pair = hn::FixedTag<uint64_t, 2>;

HWY_INLINE hn::Vec<Pair> moved(hn::Vec<Pair> remainder, hn::Vec<Pair> powers, hn::Vec<Pair> next) {
  return hn::Xor(hn::Xor(hn::CLMulLower(remainder, powers), hn::CLMulUpper(remainder, powers)), next);
}

HWY_INLINE hn::Vec<Pair> load_pair(const void* data, int64_t offset) {
  return hn::BitCast(Pair(), hn::LoadU(hn::FixedTag<uint8_t, 16>(), at<uint8_t>(data, offset)));
}

/// At least 64 bytes.
int64_t crc32_fold(uint32_t state, const void* data, int64_t bytes, uint8_t* remainder) {
  alignas(16) const uint64_t kFar[2] = {0x154442bd4, 0x1c6e41596}, kNear[2] = {0x1751997d0, 0x0ccaa009e};
  const auto far = hn::Load(Pair(), kFar), near = hn::Load(Pair(), kNear);
  alignas(16) const uint64_t start[2] = {state, 0};
  auto a = hn::Xor(load_pair(data, 0), hn::Load(Pair(), start));
  auto b = load_pair(data, 16), c = load_pair(data, 32), d = load_pair(data, 48);
  int64_t used = 64;
  for (; used + 64 <= bytes; used += 64) {
    a = moved(a, far, load_pair(data, used));
    b = moved(b, far, load_pair(data, used + 16));
    c = moved(c, far, load_pair(data, used + 32));
    d = moved(d, far, load_pair(data, used + 48));
  }
  const auto whole = moved(moved(moved(a, near, b), near, c), near, d);
  hn::StoreU(hn::BitCast(hn::FixedTag<uint8_t, 16>(), whole), hn::FixedTag<uint8_t, 16>(), remainder);
  return used;
}

void fill_crc32(KernelTable& table) {
  table.crc32_fold = crc32_fold;
}

#else

void fill_crc32(KernelTable&) {}

#endif

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace deepscale::kernels {

void fill_crc32_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_crc32, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
