// Vocabulary of the per-target kernels: vectors of fp32 (and of double), fused multiply-add, loads and stores that
// widen and round the 16-bit formats. Included once per SIMD target, hence the toggling guard that Highway prescribes.
//
// Every operation gives the same bits on every target: the scalar target fuses through fmaf, conversions round to
// nearest even, keep subnormals and keep NaN a NaN. The compiler must not fuse on its own (-ffp-contract=off in
// CMakeLists.txt).
#if defined(DEEPSCALE_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DEEPSCALE_KERNELS_CPU_SIMD_INL_H_
#undef DEEPSCALE_KERNELS_CPU_SIMD_INL_H_
#else
#define DEEPSCALE_KERNELS_CPU_SIMD_INL_H_
#endif

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#if HWY_COMPILER_MSVC
#include <math.h>
#include <string.h>
#endif

// The C function as the compiler knows it, so that no header with inline functions is needed.
#undef DEEPSCALE_BUILTIN
#if HWY_COMPILER_MSVC
#define DEEPSCALE_BUILTIN(function) ::function
#else
#define DEEPSCALE_BUILTIN(function) __builtin_##function
#endif

// The version of a function for one target bit. HWY_EXPORT is not used: its tables ask Highway's compiled part for the
// target, and here dispatch.cpp decides.
#undef DEEPSCALE_FOR_TARGET
#if HWY_ARCH_X86
#define DEEPSCALE_FOR_TARGET(function, target)          \
  (*((target) == HWY_AVX3   ? HWY_CHOOSE_AVX3(function) \
     : (target) == HWY_AVX2 ? HWY_CHOOSE_AVX2(function) \
                            : HWY_CHOOSE_FALLBACK(function)))
#else
#define DEEPSCALE_FOR_TARGET(function, target) (*((void)(target), &HWY_STATIC_DISPATCH(function)))
#endif

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using FloatTag = hn::ScalableTag<float>;
using DoubleTag = hn::ScalableTag<double>;
/// As many floats as DoubleTag has doubles.
using NarrowFloatTag = hn::Rebind<float, DoubleTag>;

// SVE and RVV are switched off (CMakeLists.txt), so lane counts are constants.
constexpr int64_t kFloatLanes = static_cast<int64_t>(HWY_LANES(float));
constexpr int64_t kDoubleLanes = static_cast<int64_t>(HWY_LANES(double));
constexpr int64_t kMaxLanes = 16;
static_assert(kFloatLanes <= kMaxLanes);

/// From this size on, memory that is written and not read is written past the caches: it saves reading the lines first
/// (measured: 1.2 to 1.4 times faster from cold memory), and smaller results are wanted in the cache by whoever reads
/// them.
constexpr int64_t kStreamBytes = int64_t{4} << 20;

#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
constexpr bool kCanStream = true;
#else
constexpr bool kCanStream = false;
#endif

HWY_INLINE void copy_bytes(void* to, const void* from, size_t bytes) {
  DEEPSCALE_BUILTIN(memcpy)(to, from, bytes);
}

template <class V>
HWY_INLINE V fused(V a, V b, V c) {  // a * b + c, rounded once
#if HWY_TARGET == HWY_SCALAR
  V result;
  if constexpr (sizeof(hn::TFromV<V>) == 4) {
    result.raw = DEEPSCALE_BUILTIN(fmaf)(a.raw, b.raw, c.raw);
  } else {
    result.raw = DEEPSCALE_BUILTIN(fma)(a.raw, b.raw, c.raw);
  }
  return result;
#else
  return hn::MulAdd(a, b, c);
#endif
}

template <class V>
HWY_INLINE V fused_negative(V a, V b, V c) {  // c - a * b, rounded once
#if HWY_TARGET == HWY_SCALAR
  return fused(hn::Neg(a), b, c);
#else
  return hn::NegMulAdd(a, b, c);
#endif
}

HWY_INLINE hn::Vec<NarrowFloatTag> narrow(hn::Vec<DoubleTag> value) {  // to fp32, nearest even, infinities kept
#if HWY_TARGET == HWY_SCALAR
  // Highway's scalar DemoteTo clamps to the largest finite float.
  return hn::Set(NarrowFloatTag(), static_cast<float>(value.raw));
#else
  return hn::DemoteTo(NarrowFloatTag(), value);
#endif
}

template <class D>
HWY_INLINE hn::Vec<D> widen_bfloat16(D d, hn::Vec<hn::Rebind<uint16_t, D>> bits) {
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(hn::Rebind<uint32_t, D>(), bits)));
}

// The upper half of each lane is the nearest bfloat16, ties to even; the lower half is rubbish. Works on the integer
// pattern: a carry out of the mantissa is the right exponent, up to infinity. A NaN becomes 0x7FC0, as in at::BFloat16.
template <class V>
HWY_INLINE auto rounded_bfloat16_bits(V value) {
  const hn::RebindToUnsigned<hn::DFromV<V>> du;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF)));
  return hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), hn::Set(du, 0x7FC00000u), rounded);
}

template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> round_bfloat16(D, hn::Vec<D> value) {
  const auto narrowed = hn::ShiftRight<16>(rounded_bfloat16_bits(value));
  return hn::DemoteTo(hn::Rebind<uint16_t, D>(), hn::BitCast(hn::Rebind<int32_t, D>(), narrowed));
}

#if HWY_TARGET == HWY_SCALAR

// IEEE binary16 as the hardware converts it: subnormals kept, NaN quieted with the top of its payload.
HWY_INLINE float widen_half_bits(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = half & 0x7FFFu;
  uint32_t bits;
  if (rest > 0x7C00u) {
    bits = sign | 0x7FC00000u | (rest << 13);
  } else if (rest == 0x7C00u) {
    bits = sign | 0x7F800000u;
  } else if (rest >= 0x0400u) {
    bits = sign | ((rest << 13) + 0x38000000u);
  } else {
    const float magnitude = static_cast<float>(rest) * 0x1p-24f;  // exact
    copy_bytes(&bits, &magnitude, 4);
    bits |= sign;
  }
  float value;
  copy_bytes(&value, &bits, 4);
  return value;
}

HWY_INLINE uint16_t round_half_bits(float value) {
  uint32_t bits;
  copy_bytes(&bits, &value, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t rest = bits & 0x7FFFFFFFu;
  if (rest > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | ((rest >> 13) & 0x3FFu));
  if (rest >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and above round to infinity
  if (rest < 0x38800000u) {
    // Below 2^-14: adding 0.5 puts the unit of binary16 subnormals, 2^-24, at the last mantissa bit and rounds to it.
    float magnitude;
    copy_bytes(&magnitude, &rest, 4);
    magnitude += 0.5f;
    uint32_t shifted;
    copy_bytes(&shifted, &magnitude, 4);
    return static_cast<uint16_t>(sign | (shifted - 0x3F000000u));
  }
  const uint32_t odd = (rest >> 13) & 1u;
  return static_cast<uint16_t>(sign | ((rest - 0x38000000u + 0x0FFFu + odd) >> 13));
}

#endif  // HWY_SCALAR

template <class D>
HWY_INLINE hn::Vec<D> widen_float16(D d, hn::Vec<hn::Rebind<uint16_t, D>> bits) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(d, widen_half_bits(bits.raw));
#else
  return hn::PromoteTo(d, hn::BitCast(hn::Rebind<hwy::float16_t, D>(), bits));
#endif
}

template <class D>
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, D>> round_float16(D d, hn::Vec<D> value) {
  (void)d;
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(hn::Rebind<uint16_t, D>(), round_half_bits(value.raw));
#else
  return hn::BitCast(hn::Rebind<uint16_t, D>(), hn::DemoteTo(hn::Rebind<hwy::float16_t, D>(), value));
#endif
}

template <class T>
HWY_INLINE const T* at(const void* data, int64_t index) {
  return static_cast<const T*>(data) + index;
}

template <class T>
HWY_INLINE T* at(void* data, int64_t index) {
  return static_cast<T*>(data) + index;
}

/// Lanes(d) elements of `data` (in `dtype`: fp32, bf16 or fp16) from `index` on, as fp32.
template <class D>
HWY_INLINE hn::Vec<D> load(D d, const void* data, DType dtype, int64_t index) {
  const hn::Rebind<uint16_t, D> du16;
  switch (dtype) {
    case DType::kBFloat16:
      return widen_bfloat16(d, hn::LoadU(du16, at<uint16_t>(data, index)));
    case DType::kFloat16:
      return widen_float16(d, hn::LoadU(du16, at<uint16_t>(data, index)));
    default:
      return hn::LoadU(d, at<float>(data, index));
  }
}

template <class D>
HWY_INLINE void store(D d, hn::Vec<D> value, void* data, DType dtype, int64_t index) {
  const hn::Rebind<uint16_t, D> du16;
  switch (dtype) {
    case DType::kBFloat16:
      hn::StoreU(round_bfloat16(d, value), du16, at<uint16_t>(data, index));
      return;
    case DType::kFloat16:
      hn::StoreU(round_float16(d, value), du16, at<uint16_t>(data, index));
      return;
    default:
      hn::StoreU(value, d, at<float>(data, index));
  }
}

/// The first `count` lanes only, the others zero: reads nothing beyond index + count.
template <class D>
HWY_INLINE hn::Vec<D> load_part(D d, const void* data, DType dtype, int64_t index, int64_t count) {
  alignas(64) unsigned char padded[kMaxLanes * sizeof(float)] = {};
  const size_t width = dtype == DType::kFloat32 ? 4 : 2;
  copy_bytes(padded, static_cast<const unsigned char*>(data) + index * width, count * width);
  return load(d, padded, dtype, 0);
}

template <class D>
HWY_INLINE void store_part(D d, hn::Vec<D> value, void* data, DType dtype, int64_t index, int64_t count) {
  alignas(64) unsigned char padded[kMaxLanes * sizeof(float)];
  const size_t width = dtype == DType::kFloat32 ? 4 : 2;
  store(d, value, padded, dtype, 0);
  copy_bytes(static_cast<unsigned char*>(data) + index * width, padded, count * width);
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
