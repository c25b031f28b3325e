// What the products of matmul.h share on every SIMD target: the lanes of a sum, which elements they take, the
// parameters of groups and the dequantised element. Included once per target by matmul_driver-inl.h.
#if defined(DEEPSCALE_KERNELS_CPU_MATMUL_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DEEPSCALE_KERNELS_CPU_MATMUL_LANES_INL_H_
#undef DEEPSCALE_KERNELS_CPU_MATMUL_LANES_INL_H_
#else
#define DEEPSCALE_KERNELS_CPU_MATMUL_LANES_INL_H_
#endif

#include "kernels/cpu/simd-inl.h"

// The dot products of bf16 (DEEPSCALE_MATMUL_BF16_DOT) are a variant of one target: own namespace, one more feature.
#undef DEEPSCALE_MATMUL_NAMESPACE
#undef DEEPSCALE_MATMUL_TARGET_STR
#ifdef DEEPSCALE_MATMUL_BF16_DOT
#define DEEPSCALE_MATMUL_NAMESPACE N_AVX3_BF16
#define DEEPSCALE_MATMUL_TARGET_STR HWY_TARGET_STR ",avx512bf16"
#else
#define DEEPSCALE_MATMUL_NAMESPACE HWY_NAMESPACE
#ifdef HWY_TARGET_STR
#define DEEPSCALE_MATMUL_TARGET_STR HWY_TARGET_STR
#endif
#endif

#undef DEEPSCALE_MATMUL_BEFORE_NAMESPACE
#undef DEEPSCALE_MATMUL_AFTER_NAMESPACE
#undef DEEPSCALE_MATMUL_ATTR
#ifdef DEEPSCALE_MATMUL_TARGET_STR
#define DEEPSCALE_MATMUL_BEFORE_NAMESPACE() HWY_PUSH_ATTRIBUTES(DEEPSCALE_MATMUL_TARGET_STR) static_assert(true, "")
#define DEEPSCALE_MATMUL_AFTER_NAMESPACE() HWY_POP_ATTRIBUTES static_assert(true, "")
#define DEEPSCALE_MATMUL_ATTR __attribute__((target(DEEPSCALE_MATMUL_TARGET_STR)))
#else
#define DEEPSCALE_MATMUL_BEFORE_NAMESPACE() static_assert(true, "")
#define DEEPSCALE_MATMUL_AFTER_NAMESPACE() static_assert(true, "")
#define DEEPSCALE_MATMUL_ATTR
#endif

// Of a lambda that must become part of its caller, so that arrays of vectors stay in registers.
#undef DEEPSCALE_INLINE_LAMBDA
#if HWY_COMPILER_MSVC
#undef DEEPSCALE_MATMUL_ATTR
#define DEEPSCALE_INLINE_LAMBDA
#else
#define DEEPSCALE_INLINE_LAMBDA DEEPSCALE_MATMUL_ATTR __attribute__((always_inline))
#endif

DEEPSCALE_MATMUL_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace DEEPSCALE_MATMUL_NAMESPACE {

#ifdef DEEPSCALE_MATMUL_BF16_DOT
using namespace HWY_NAMESPACE;
#endif

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

/// Elements that go by at a time: two of each lane.
constexpr int64_t kStep = 32;

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

/// What dequantising needs of a group.
struct NoGroup {};

struct ScaledGroup {
  V inverse, minimum;
};

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

}  // namespace DEEPSCALE_MATMUL_NAMESPACE
}  // namespace deepscale::kernels
DEEPSCALE_MATMUL_AFTER_NAMESPACE();

#endif  // toggling guard
