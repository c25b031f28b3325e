// Products of bf16 by the processor's own dot products (AVX-512 BF16, vdpbf16ps): each of 16 lanes adds two products to
// its sum with one fused multiply-add after the other, the odd element first. Those are the same bits as
// matmul_float-inl.h's, except that numbers below 2^-126 (inputs and sums) count as zero.
// Intel SDM volume 2, VDPBF16PS; checked on an AMD Zen 5. Included by matmul_driver-inl.h in its variant of one target.
#if defined(DEEPSCALE_KERNELS_CPU_MATMUL_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DEEPSCALE_KERNELS_CPU_MATMUL_DOT_INL_H_
#undef DEEPSCALE_KERNELS_CPU_MATMUL_DOT_INL_H_
#else
#define DEEPSCALE_KERNELS_CPU_MATMUL_DOT_INL_H_
#endif

#include "kernels/cpu/matmul_lanes-inl.h"

DEEPSCALE_MATMUL_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace DEEPSCALE_MATMUL_NAMESPACE {

/// Of packed x and of dequantised tiles.
using Packed = uint16_t;
constexpr WeightKind kTileKind = WeightKind::kBFloat16;

/// 32 elements of weights or of packed x: lane l takes word 2 l + 1, then word 2 l.
struct Step {
  __m512i words;
};

/// The 16 values of a 4-bit group, twice: the instruction that looks them up reads five bits.
struct TableGroup {
  __m512i table;
};

template <WeightKind kKind>
struct GroupOf {
  using Type = NoGroup;
};
template <>
struct GroupOf<WeightKind::kInt8AsBFloat16> {
  using Type = ScaledGroup;
};
template <>
struct GroupOf<WeightKind::kInt4AsBFloat16> {
  using Type = TableGroup;
};

template <WeightKind kKind>
using Group = typename GroupOf<kKind>::Type;

/// The nearest bf16 of 16 + 16 values, subnormals as zero.
HWY_INLINE __m512i rounded_pair(V low, V high) {
  __m512i words;
  const __m512bh pair = _mm512_cvtne2ps_pbh(high.raw, low.raw);
  copy_bytes(&words, &pair, sizeof(words));
  return words;
}

template <WeightKind kKind>
HWY_INLINE void set_group(float inverse, float minimum, TableGroup& group) {
  const FloatTag d;
  const V values = fused(hn::Iota(d, 0.0f), hn::Set(d, inverse), hn::Set(d, minimum));
  group.table = rounded_pair(values, values);
}

HWY_INLINE V widened_bytes(const uint8_t* bytes) {
  const FloatTag d;
  return hn::ConvertTo(
      d, hn::PromoteTo(hn::RebindToSigned<FloatTag>(), hn::LoadU(hn::Rebind<uint8_t, FloatTag>(), bytes)));
}

/// The 32 elements at `bytes`.
template <WeightKind kKind>
HWY_INLINE Step decode(const uint8_t* bytes, const Group<kKind>& group) {
  if constexpr (kKind == WeightKind::kBFloat16) {
    return {_mm512_loadu_si512(bytes)};
  } else if constexpr (kKind == WeightKind::kInt8AsBFloat16) {
    const V low = fused(widened_bytes(bytes), group.inverse, group.minimum);
    const V high = fused(widened_bytes(bytes + kLanes), group.inverse, group.minimum);
    return {rounded_pair(low, high)};
  } else {
    // The 8 words of 16 bytes, once for each nibble of a word.
    const __m512i words = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)));
    const __m512i shifts = _mm512_set_epi64(0x000C000C000C000C, 0x000C000C000C000C, 0x0008000800080008,
                                            0x0008000800080008, 0x0004000400040004, 0x0004000400040004, 0, 0);
    return {_mm512_permutexvar_epi16(_mm512_srlv_epi16(words, shifts), group.table)};
  }
}

/// 32 elements of packed x, or of a tile.
HWY_INLINE Step load_step(const Packed* values) {
  return {_mm512_loadu_si512(values)};
}

HWY_INLINE void store_step(const Step& step, Packed* tile) {
  _mm512_storeu_si512(tile, step.words);
}

/// Adds the products of both elements of each lane.
constexpr int kPhases = 1;

template <int kPhase>
HWY_INLINE void add_products(const Step& x, const Step& weights, Lanes& sums) {
  __m512bh a, b;
  copy_bytes(&a, &x.words, sizeof(a));
  copy_bytes(&b, &weights.words, sizeof(b));
  sums.part[0].raw = _mm512_dpbf16_ps(sums.part[0].raw, a, b);
}

/// Which of 32 words goes to each word.
struct WordOrder {
  uint16_t word[kStep];
};

constexpr WordOrder word_order(WeightKind kind) {
  const LaneOrder lanes = lane_order(kind);
  WordOrder order{};
  for (int l = 0; l < kLanes; ++l) {
    order.word[2 * l] = static_cast<uint16_t>(lanes.second[l]);
    order.word[2 * l + 1] = static_cast<uint16_t>(lanes.first[l]);
  }
  return order;
}

template <WeightKind kKind>
HWY_INLINE Step in_word_order(__m512i natural) {
  static constexpr WordOrder kOrder = word_order(kKind);
  return {_mm512_permutexvar_epi16(_mm512_loadu_si512(kOrder.word), natural)};
}

/// 32 elements in the order in which the lanes take them.
template <WeightKind kKind>
HWY_INLINE void permute(const float* natural, Packed* permuted) {
  const FloatTag d;
  store_step(in_word_order<kKind>(rounded_pair(hn::LoadU(d, natural), hn::LoadU(d, natural + kLanes))), permuted);
}

/// The first `count` (at most 32, the others count as 0) elements of x, which is bf16, from `begin` on, packed.
template <WeightKind kKind>
HWY_INLINE void pack_step(const void* x, DType, int64_t begin, int64_t count, Packed* packed) {
  const __mmask32 mask = count >= kStep ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
  store_step(in_word_order<kKind>(_mm512_maskz_loadu_epi16(mask, at<uint16_t>(x, begin))), packed);
}

}  // namespace DEEPSCALE_MATMUL_NAMESPACE
}  // namespace deepscale::kernels
DEEPSCALE_MATMUL_AFTER_NAMESPACE();

#endif  // toggling guard
