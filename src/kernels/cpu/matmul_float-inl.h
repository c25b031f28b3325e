// Products in fp32: 32 elements of a row of weights become two sets of 16 lanes, per kind of weight and SIMD target.
// Included once per target by matmul_driver-inl.h.
#if defined(DEEPSCALE_KERNELS_CPU_MATMUL_FLOAT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DEEPSCALE_KERNELS_CPU_MATMUL_FLOAT_INL_H_
#undef DEEPSCALE_KERNELS_CPU_MATMUL_FLOAT_INL_H_
#else
#define DEEPSCALE_KERNELS_CPU_MATMUL_FLOAT_INL_H_
#endif

#include "kernels/cpu/matmul_lanes-inl.h"

DEEPSCALE_MATMUL_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace DEEPSCALE_MATMUL_NAMESPACE {

/// Of packed x and of dequantised tiles.
using Packed = float;
constexpr WeightKind kTileKind = WeightKind::kFloat32;

/// 32 elements of weights or of packed x: every lane takes its element of `first`, then its element of `second`.
struct Step {
  Lanes first, second;
};

/// All 16 values of a 4-bit group, where a vector holds them.
struct TableGroup {
  V table;
};

#if HWY_TARGET == HWY_AVX3
using NibbleGroup = TableGroup;
#else
using NibbleGroup = ScaledGroup;
#endif

template <WeightKind kKind>
struct GroupOf {
  using Type = NoGroup;
};
template <>
struct GroupOf<WeightKind::kInt8> {
  using Type = ScaledGroup;
};
template <>
struct GroupOf<WeightKind::kInt8AsBFloat16> {
  using Type = ScaledGroup;
};
template <>
struct GroupOf<WeightKind::kInt4> {
  using Type = NibbleGroup;
};
template <>
struct GroupOf<WeightKind::kInt4AsBFloat16> {
  using Type = NibbleGroup;
};

template <WeightKind kKind>
using Group = typename GroupOf<kKind>::Type;

template <WeightKind kKind>
HWY_INLINE void set_group(float inverse, float minimum, TableGroup& group) {
  const FloatTag d;
  group.table = element<kKind>(hn::Iota(d, 0.0f), hn::Set(d, inverse), hn::Set(d, minimum));
}

/// Words whose low four bits are q; the others may be anything.
template <WeightKind kKind>
HWY_INLINE V value_of_nibble(hn::Vec<Words> words, const Group<kKind>& group) {
#if HWY_TARGET == HWY_AVX3
  // The instruction reads four bits of each index.
  return hn::TableLookupLanes(group.table, hn::IndicesFromVec(FloatTag(), words));
#else
  return element<kKind>(as_float(hn::And(words, hn::Set(Words(), 15))), group.inverse, group.minimum);
#endif
}

/// Dwords l % 4 of the 16 bytes, for lanes l from `lane` on.
HWY_INLINE hn::Vec<Words> load_dup(const uint8_t* bytes, int64_t lane) {
#if HWY_TARGET == HWY_SCALAR
  uint32_t word;
  copy_bytes(&word, bytes + 4 * (lane % 4), 4);
  return hn::Set(Words(), word);
#else
  (void)lane;
  return hn::LoadDup128(Words(), reinterpret_cast<const uint32_t*>(bytes));
#endif
}

/// 4 * (l / 4): where the nibble of lane l starts in the lower half of its dword.
HWY_INLINE hn::Vec<Words> nibble_shifts(int64_t lane) {
  const Words dw;
  return hn::ShiftLeft<2>(hn::ShiftRight<2>(hn::Iota(dw, static_cast<uint32_t>(lane))));
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
  unrolled<kParts>([&](auto p) DEEPSCALE_INLINE_LAMBDA {
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
    } else if constexpr (is_int8(kKind)) {
      const auto pairs = hn::PromoteTo(dw, load_halves(bytes + 2 * lane));
      const V odd = as_float(hn::ShiftRight<8>(pairs)), even = as_float(hn::And(pairs, hn::Set(dw, 0xFF)));
      step.first.part[p] = element<kKind>(odd, group.inverse, group.minimum);
      step.second.part[p] = element<kKind>(even, group.inverse, group.minimum);
    } else {
      const auto dwords = load_dup(bytes, lane), shifts = nibble_shifts(lane);
      step.first.part[p] = value_of_nibble<kKind>(hn::Shr(dwords, hn::Add(shifts, hn::Set(dw, 16))), group);
      step.second.part[p] = value_of_nibble<kKind>(hn::Shr(dwords, shifts), group);
    }
  });
  return step;
}

/// 32 elements of packed x, or of a tile.
HWY_INLINE Step load_step(const Packed* values) {
  return decode<WeightKind::kFloat32>(reinterpret_cast<const uint8_t*>(values), NoGroup());
}

HWY_INLINE void store_step(const Step& step, Packed* tile) {
  for (int p = 0; p < kParts; ++p) {
    hn::StoreU(step.first.part[p], FloatTag(), tile + p * kFloatLanes);
    hn::StoreU(step.second.part[p], FloatTag(), tile + kLanes + p * kFloatLanes);
  }
}

/// Adds the products of each lane's first elements in phase 0, of its second ones in phase 1.
constexpr int kPhases = 2;

template <int kPhase>
HWY_INLINE void add_products(const Step& x, const Step& weights, Lanes& sums) {
  const Lanes& a = kPhase == 0 ? x.first : x.second;
  const Lanes& b = kPhase == 0 ? weights.first : weights.second;
  unrolled<kParts>([&](auto p) DEEPSCALE_INLINE_LAMBDA { sums.part[p] = fused(a.part[p], b.part[p], sums.part[p]); });
}

#if HWY_TARGET == HWY_AVX3
/// Lane l of the result is natural[indices[l]].
HWY_INLINE V gathered(V low, V high, const int (&indices)[kLanes]) {
  const hn::RebindToSigned<FloatTag> di;
  const FloatTag d;
  const auto index = hn::LoadU(di, indices);
  const auto lanes = hn::IndicesFromVec(d, index);  // the instruction reads four bits of each
  const auto from_low = hn::RebindMask(d, hn::Lt(index, hn::Set(di, kLanes)));
  return hn::IfThenElse(from_low, hn::TableLookupLanes(low, lanes), hn::TableLookupLanes(high, lanes));
}
#endif

/// 32 elements in the order in which the lanes take them.
template <WeightKind kKind>
HWY_INLINE void permute(const float* natural, Packed* permuted) {
  static constexpr LaneOrder kOrder = lane_order(kKind);
#if HWY_TARGET == HWY_AVX3
  const FloatTag d;
  const V low = hn::LoadU(d, natural), high = hn::LoadU(d, natural + kLanes);
  hn::StoreU(gathered(low, high, kOrder.first), d, permuted);
  hn::StoreU(gathered(low, high, kOrder.second), d, permuted + kLanes);
#else
  for (int l = 0; l < kLanes; ++l) {
    permuted[l] = natural[kOrder.first[l]];
    permuted[kLanes + l] = natural[kOrder.second[l]];
  }
#endif
}

/// The first `count` (at most 32, the others count as 0) elements of x from `begin` on, packed.
template <WeightKind kKind>
HWY_INLINE void pack_step(const void* x, DType dtype, int64_t begin, int64_t count, Packed* packed) {
  const FloatTag d;
  HWY_ALIGN float natural[kStep];
  for (int64_t i = 0; i < kStep; i += kFloatLanes) {
    const int64_t left = count - i;
    const V value = left >= kFloatLanes ? load(d, x, dtype, begin + i)
                    : left > 0          ? load_part(d, x, dtype, begin + i, left)
                                        : hn::Zero(d);
    hn::Store(value, d, natural + i);
  }
  permute<kKind>(natural, packed);
}

}  // namespace DEEPSCALE_MATMUL_NAMESPACE
}  // namespace deepscale::kernels
DEEPSCALE_MATMUL_AFTER_NAMESPACE();

#endif  // toggling guard
