// How 32 elements of a row of weights become two sets of 16 fp32 lanes, per kind of weight and SIMD target (numerics
// in matmul.h). Included by matmul_simd.cpp once per target.
#if defined(DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_
#undef DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_
#else
#define DEEPSCALE_KERNELS_CPU_MATMUL_DECODE_INL_H_
#endif

#include "kernels/cpu/simd-inl.h"

// Of a lambda that must become part of its caller, so that arrays of vectors stay in registers.
#undef DEEPSCALE_INLINE_LAMBDA
#if HWY_COMPILER_MSVC
#define DEEPSCALE_INLINE_LAMBDA
#else
#define DEEPSCALE_INLINE_LAMBDA HWY_ATTR __attribute__((always_inline))
#endif

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

using V = hn::Vec<FloatTag>;
using Words = hn::RebindToUnsigned<FloatTag>;

template <int kValue>
struct Index {
  constexpr operator int() const { return kValue; }
};

/// Calls work(Index<0>()) ... work(Index<kEnd - 1>()): arrays that are only indexed so can live in registers.
template <int kEnd, int kBegin = 0, class Work>
HWY_INLINE void unrolled(const Work& work) {
#if HWY_TARGET == HWY_SCALAR
  for (int i = 0; i < kEnd; ++i) work(i);
#else
  if constexpr (kBegin < kEnd) {
    work(Index<kBegin>());
    unrolled<kEnd, kBegin + 1>(work);
  }
#endif
}

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

constexpr bool is_int4(WeightKind kind) {
  return kind == WeightKind::kInt4 || kind == WeightKind::kInt4AsBFloat16;
}

constexpr bool is_int8(WeightKind kind) {
  return kind == WeightKind::kInt8 || kind == WeightKind::kInt8AsBFloat16;
}

constexpr bool is_quantized(WeightKind kind) {
  return is_int4(kind) || is_int8(kind);
}

constexpr bool is_rounded(WeightKind kind) {
  return kind == WeightKind::kInt4AsBFloat16 || kind == WeightKind::kInt8AsBFloat16;
}

/// Of the 32 elements of a step, the one that a lane takes first, and the one that it takes next.
struct LaneOrder {
  int first[kLanes], second[kLanes];
};

constexpr LaneOrder lane_order(WeightKind kind) {
  constexpr int kNibble[4] = {1, 0, 3, 2};  // elements of a 16-bit word from its low bits up
  LaneOrder order{};
  for (int l = 0; l < kLanes; ++l) {
    if (is_int4(kind)) {
      order.second[l] = 8 * (l % 4) + kNibble[l / 4];
      order.first[l] = order.second[l] + 4;
    } else if (is_int8(kind) || kind == WeightKind::kBFloat16) {
      order.first[l] = 2 * l + 1;
      order.second[l] = 2 * l;
    } else {
      order.first[l] = l;
      order.second[l] = kLanes + l;
    }
  }
  return order;
}

/// Bytes of `count` elements.
constexpr int64_t bytes_of(WeightKind kind, int64_t count) {
  switch (kind) {
    case WeightKind::kFloat32:
      return 4 * count;
    case WeightKind::kInt8:
    case WeightKind::kInt8AsBFloat16:
      return count;
    case WeightKind::kInt4:
    case WeightKind::kInt4AsBFloat16:
      return (count + 1) / 2;
    default:
      return 2 * count;
  }
}

/// What a group's elements need: nothing, inverse scale and minimum, or all 16 values where a vector holds them.
struct NoGroup {};

struct ScaledGroup {
  V inverse, minimum;
};

struct TableGroup {
  V table;
};

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
#if HWY_TARGET == HWY_AVX3
using NibbleGroup = TableGroup;
#else
using NibbleGroup = ScaledGroup;
#endif
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

/// The nearest bfloat16 as fp32. The NaN of a group is 0x7FC00000 (load_params), which the addition leaves a NaN.
HWY_INLINE V rounded_to_bfloat16(V value) {
  const Words dw;
  const auto bits = hn::BitCast(dw, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(dw, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(dw, 0x7FFF)));
  return hn::BitCast(FloatTag(), hn::And(rounded, hn::Set(dw, 0xFFFF0000u)));
}

HWY_INLINE V as_float(hn::Vec<Words> integers) {
  return hn::ConvertTo(FloatTag(), hn::BitCast(hn::RebindToSigned<FloatTag>(), integers));
}

/// The element that is stored as q (exact in fp32).
template <WeightKind kKind>
HWY_INLINE V element(V q, V inverse, V minimum) {
  const V value = fused(q, inverse, minimum);
  if constexpr (is_rounded(kKind)) return rounded_to_bfloat16(value);
  return value;
}

template <WeightKind kKind>
HWY_INLINE void set_group(float inverse, float minimum, ScaledGroup& group) {
  group = {hn::Set(FloatTag(), inverse), hn::Set(FloatTag(), minimum)};
}

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

HWY_INLINE Lanes load_lanes(const float* values) {
  Lanes lanes;
  unrolled<kParts>([&](auto p)
                       DEEPSCALE_INLINE_LAMBDA { lanes.part[p] = hn::LoadU(FloatTag(), values + p * kFloatLanes); });
  return lanes;
}

HWY_INLINE void store_lanes(const Lanes& lanes, float* values) {
  for (int p = 0; p < kParts; ++p) hn::StoreU(lanes.part[p], FloatTag(), values + p * kFloatLanes);
}

HWY_INLINE void add_products(const Lanes& a, const Lanes& b, Lanes& sums) {
  unrolled<kParts>([&](auto p) DEEPSCALE_INLINE_LAMBDA { sums.part[p] = fused(a.part[p], b.part[p], sums.part[p]); });
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
