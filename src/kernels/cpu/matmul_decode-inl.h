// How 32 elements of a row of weights become two sets of 16 fp32 lanes, per kind of weight and SIMD target (numerics
// in matmul.h). Included by matmul_simd.cpp once per target.
#if defined(DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_
#undef DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_
#else
#define DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_
#endif

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

using V = hn::Vec<FloatTag>;
using Words = hn::RebindToUnsigned<FloatTag>;

/// The 16 lanes of the contract in as many vectors as the target needs.
constexpr int kLanes = 16;
constexpr int kParts = kLanes / static_cast<int>(kFloatLanes);

struct Lanes {
  V part[kParts];
};

/// 32 consecutive elements: every lane takes its element of `first`, then its element of `second`.
constexpr int64_t kStep = 32;

struct Step {
  Lanes first, second;
};

constexpr bool is_quantized(WeightKind kind) {
  return kind == WeightKind::kInt8 || kind == WeightKind::kInt4;
}

/// Whether a lane takes two neighbours, the odd element first; else `first` holds elements 0..15, `second` 16..31.
constexpr bool is_paired(WeightKind kind) {
  return is_quantized(kind) || kind == WeightKind::kBFloat16;
}

/// Bytes of `count` elements.
constexpr int64_t bytes_of(WeightKind kind, int64_t count) {
  switch (kind) {
    case WeightKind::kFloat32:
      return 4 * count;
    case WeightKind::kInt8:
      return count;
    case WeightKind::kInt4:
      return (count + 1) / 2;
    default:
      return 2 * count;
  }
}

/// What a group's elements need: nothing, inverse scale and minimum, or all 16 values where a vector holds them.
constexpr bool kHasTable = kFloatLanes == kLanes;

template <WeightKind kKind>
struct Group {};

template <>
struct Group<WeightKind::kInt8> {
  V inverse, minimum;
};

template <>
struct Group<WeightKind::kInt4> {
  V inverse, minimum;  // with kHasTable: the table in both
};

template <WeightKind kKind>
HWY_INLINE Group<kKind> make_group(float inverse, float minimum) {
  const FloatTag d;
  const V factor = hn::Set(d, inverse), offset = hn::Set(d, minimum);
  if constexpr (kKind == WeightKind::kInt4 && kHasTable) {
    const V table = fused(hn::Iota(d, 0.0f), factor, offset);
    return {table, table};
  } else {
    return {factor, offset};
  }
}

HWY_INLINE V as_float(hn::Vec<Words> integers) {
  return hn::ConvertTo(FloatTag(), hn::BitCast(hn::RebindToSigned<FloatTag>(), integers));
}

/// Words whose low four bits are q; with kHasTable the others may be anything.
HWY_INLINE V value_of_nibble(hn::Vec<Words> words, const Group<WeightKind::kInt4>& group) {
#if HWY_TARGET == HWY_AVX3
  // The instruction reads four bits of each index.
  return hn::TableLookupLanes(group.inverse, hn::IndicesFromVec(FloatTag(), words));
#else
  return fused(as_float(hn::And(words, hn::Set(Words(), 15))), group.inverse, group.minimum);
#endif
}

/// kFloatLanes 32-bit words, at any address.
HWY_INLINE hn::Vec<Words> load_words(const uint8_t* bytes) {
#if HWY_TARGET == HWY_SCALAR
  uint32_t word;
  copy_bytes(&word, bytes, 4);
  return hn::Set(Words(), word);
#else
  return hn::LoadU(Words(), reinterpret_cast<const uint32_t*>(bytes));
#endif
}

HWY_INLINE V load_floats(const uint8_t* bytes) {
  return hn::BitCast(FloatTag(), load_words(bytes));
}

/// kFloatLanes 16-bit words, widened by the caller's tag.
HWY_INLINE hn::Vec<hn::Rebind<uint16_t, FloatTag>> load_halves(const uint8_t* bytes) {
  const hn::Rebind<uint16_t, FloatTag> d16;
#if HWY_TARGET == HWY_SCALAR
  uint16_t word;
  copy_bytes(&word, bytes, 2);
  return hn::Set(d16, word);
#else
  return hn::LoadU(d16, reinterpret_cast<const uint16_t*>(bytes));
#endif
}

/// The 32 elements at `bytes`.
template <WeightKind kKind>
HWY_INLINE Step decode(const uint8_t* bytes, const Group<kKind>& group) {
  const FloatTag d;
  const Words dw;
  Step step;
  for (int p = 0; p < kParts; ++p) {
    const int64_t lane = p * kFloatLanes;
    if constexpr (kKind == WeightKind::kFloat32) {
      step.first.part[p] = load_floats(bytes + 4 * lane);
      step.second.part[p] = load_floats(bytes + 4 * (kLanes + lane));
    } else if constexpr (kKind == WeightKind::kFloat16) {
      step.first.part[p] = widen_float16(d, load_halves(bytes + 2 * lane));
      step.second.part[p] = widen_float16(d, load_halves(bytes + 2 * (kLanes + lane)));
    } else if constexpr (kKind == WeightKind::kBFloat16) {
      const auto pairs = load_words(bytes + 4 * lane);
      step.first.part[p] = hn::BitCast(d, hn::And(pairs, hn::Set(dw, 0xFFFF0000u)));
      step.second.part[p] = hn::BitCast(d, hn::ShiftLeft<16>(pairs));
    } else if constexpr (kKind == WeightKind::kInt8) {
      const auto pairs = hn::PromoteTo(dw, load_halves(bytes + 2 * lane));
      step.first.part[p] = fused(as_float(hn::ShiftRight<8>(pairs)), group.inverse, group.minimum);
      step.second.part[p] = fused(as_float(hn::And(pairs, hn::Set(dw, 0xFF))), group.inverse, group.minimum);
    } else {
      // The even element is the high nibble.
      const auto pairs = hn::PromoteTo(dw, hn::LoadU(hn::Rebind<uint8_t, FloatTag>(), bytes + lane));
      step.first.part[p] = value_of_nibble(pairs, group);
      step.second.part[p] = value_of_nibble(hn::ShiftRight<4>(pairs), group);
    }
  }
  return step;
}

HWY_INLINE Lanes load_lanes(const float* values) {
  Lanes lanes;
  for (int p = 0; p < kParts; ++p) lanes.part[p] = hn::LoadU(FloatTag(), values + p * kFloatLanes);
  return lanes;
}

HWY_INLINE void store_lanes(const Lanes& lanes, float* values) {
  for (int p = 0; p < kParts; ++p) hn::StoreU(lanes.part[p], FloatTag(), values + p * kFloatLanes);
}

HWY_INLINE void add_products(const Lanes& a, const Lanes& b, Lanes& sums) {
  for (int p = 0; p < kParts; ++p) sums.part[p] = fused(a.part[p], b.part[p], sums.part[p]);
}

/// The sum of a vector: upper half to lower half, down to one lane.
#if HWY_TARGET == HWY_SCALAR
HWY_INLINE float folded(FloatTag, V sum) {
  return hn::GetLane(sum);
}
#else
template <class D>
HWY_INLINE float folded(D d, hn::Vec<D> sums) {
  if constexpr (hn::MaxLanes(D()) > 4) {
    const hn::Half<D> half;
    return folded(half, hn::Add(hn::LowerHalf(half, sums), hn::UpperHalf(half, sums)));
  } else {
    (void)d;
    const auto two = hn::Add(sums, hn::Shuffle1032(sums));
    return hn::GetLane(hn::Add(two, hn::Shuffle2301(two)));
  }
}
#endif

/// The tree of the contract: lanes l + 8, then + 4, + 2, + 1.
HWY_INLINE float tree_sum(Lanes sums) {
  for (int half = kParts / 2; half > 0; half /= 2) {
    for (int p = 0; p < half; ++p) sums.part[p] = hn::Add(sums.part[p], sums.part[p + half]);
  }
  return folded(FloatTag(), sums.part[0]);
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#endif  // toggling guard
