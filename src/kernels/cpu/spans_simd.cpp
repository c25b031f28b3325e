// Sums of squares, conversions, accumulation and copies per SIMD target (contracts in spans.h).
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/spans_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

using VD = hn::Vec<DoubleTag>;

/// Lanes(DoubleTag) elements of any float dtype as double.
HWY_INLINE VD load_double(const void* data, DType dtype, int64_t index) {
  if (dtype == DType::kFloat64) return hn::LoadU(DoubleTag(), at<double>(data, index));
  return hn::PromoteTo(DoubleTag(), load(NarrowFloatTag(), data, dtype, index));
}

HWY_INLINE void store_double(VD value, void* data, DType dtype, int64_t index) {
  if (dtype == DType::kFloat64) {
    hn::StoreU(value, DoubleTag(), at<double>(data, index));
  } else {
    store(NarrowFloatTag(), narrow(value), data, dtype, index);
  }
}

HWY_INLINE VD load_double_part(const void* data, DType dtype, int64_t index, int64_t count) {
  alignas(64) unsigned char padded[kMaxLanes * sizeof(double)] = {};
  const int64_t width = size_of(dtype);
  copy_bytes(padded, at<unsigned char>(data, index * width), static_cast<size_t>(count * width));
  return load_double(padded, dtype, 0);
}

HWY_INLINE void store_double_part(VD value, void* data, DType dtype, int64_t index, int64_t count) {
  alignas(64) unsigned char padded[kMaxLanes * sizeof(double)];
  const int64_t width = size_of(dtype);
  store_double(value, padded, dtype, 0);
  copy_bytes(at<unsigned char>(data, index * width), padded, static_cast<size_t>(count * width));
}

constexpr int64_t kNormLanes = 16;
constexpr int kNormVectors = static_cast<int>(kNormLanes / kDoubleLanes);

struct NormLanes {
  VD lanes[kNormVectors];
};

/// Adds the squares of elements [begin, begin + 16) to their lanes.
template <DType kType>
HWY_INLINE void add_squares(const void* values, int64_t begin, NormLanes& sums) {
  for (int k = 0; k < kNormVectors; ++k) {
    const VD x = load_double(values, kType, begin + k * kDoubleLanes);
    sums.lanes[k] = fused(x, x, sums.lanes[k]);
  }
}

HWY_INLINE double tree_sum(const NormLanes& sums) {
  HWY_ALIGN double lanes[kNormLanes];
  for (int k = 0; k < kNormVectors; ++k) hn::StoreU(sums.lanes[k], DoubleTag(), lanes + k * kDoubleLanes);
  for (int64_t half = kNormLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) lanes[j] += lanes[j + half];
  }
  return lanes[0];
}

/// One block of at most kNormBlock elements. Padding with zeros adds exact zeros. (Two blocks side by side are faster
/// in the cache, but several times slower from memory: streams that run 4 KiB apart defeat the prefetchers.)
template <DType kType>
double block_sum_of_squares(const void* values, int64_t begin, int64_t count) {
  NormLanes sums;
  for (VD& lane : sums.lanes) lane = hn::Zero(DoubleTag());
  int64_t i = 0;
  for (; i + kNormLanes <= count; i += kNormLanes) add_squares<kType>(values, begin + i, sums);
  for (int k = 0; k < kNormVectors && i < count; ++k, i += kDoubleLanes) {
    const int64_t rest = count - i < kDoubleLanes ? count - i : kDoubleLanes;
    const VD x = load_double_part(values, kType, begin + i, rest);
    sums.lanes[k] = fused(x, x, sums.lanes[k]);
  }
  return tree_sum(sums);
}

template <DType kType>
void sums_of_squares(const void* values, int64_t numel, double* partials) {
  for (int64_t begin = 0; begin < numel; begin += kNormBlock, ++partials) {
    *partials = block_sum_of_squares<kType>(values, begin, numel - begin < kNormBlock ? numel - begin : kNormBlock);
  }
}

void sum_of_squares(const void* values, DType dtype, int64_t numel, double* partials) {
  switch (dtype) {
    case DType::kBFloat16:
      return sums_of_squares<DType::kBFloat16>(values, numel, partials);
    case DType::kFloat16:
      return sums_of_squares<DType::kFloat16>(values, numel, partials);
    case DType::kFloat64:
      return sums_of_squares<DType::kFloat64>(values, numel, partials);
    default:
      return sums_of_squares<DType::kFloat32>(values, numel, partials);
  }
}

enum class Action { kConvert, kAccumulate };

/// Conversions and accumulations that touch no fp64: fp32 arithmetic.
template <Action kAction, DType kFrom, DType kTo>
void convert_floats(const ConvertCall& call) {
  const ConvertCall c = call;  // a local copy that the stores cannot alias
  const FloatTag d;
  const auto scale = hn::Set(d, static_cast<float>(c.scale));
  int64_t i = 0;
  for (; i + kFloatLanes <= c.numel; i += kFloatLanes) {
    const auto x = load(d, c.source, kFrom, i);
    const auto y = kAction == Action::kAccumulate ? hn::Add(load(d, c.destination, kTo, i), x) : hn::Mul(x, scale);
    store(d, y, c.destination, kTo, i);
  }
  if (i == c.numel) return;
  const int64_t rest = c.numel - i;
  const auto x = load_part(d, c.source, kFrom, i, rest);
  const auto y =
      kAction == Action::kAccumulate ? hn::Add(load_part(d, c.destination, kTo, i, rest), x) : hn::Mul(x, scale);
  store_part(d, y, c.destination, kTo, i, rest);
}

/// Those with fp64 on a side: double arithmetic, then fp32, then 16 bits where needed.
template <Action kAction>
void convert_doubles(const ConvertCall& c) {
  const VD scale = hn::Set(DoubleTag(), c.scale);
  int64_t i = 0;
  for (; i + kDoubleLanes <= c.numel; i += kDoubleLanes) {
    const VD x = load_double(c.source, c.source_dtype, i);
    const VD y = kAction == Action::kAccumulate ? hn::Add(load_double(c.destination, c.destination_dtype, i), x)
                                                : hn::Mul(x, scale);
    store_double(y, c.destination, c.destination_dtype, i);
  }
  if (i == c.numel) return;
  const int64_t rest = c.numel - i;
  const VD x = load_double_part(c.source, c.source_dtype, i, rest);
  const VD y = kAction == Action::kAccumulate
                   ? hn::Add(load_double_part(c.destination, c.destination_dtype, i, rest), x)
                   : hn::Mul(x, scale);
  store_double_part(y, c.destination, c.destination_dtype, i, rest);
}

template <Action kAction, DType kFrom>
void convert_from(const ConvertCall& call) {
  switch (call.destination_dtype) {
    case DType::kBFloat16:
      return convert_floats<kAction, kFrom, DType::kBFloat16>(call);
    case DType::kFloat16:
      return convert_floats<kAction, kFrom, DType::kFloat16>(call);
    default:
      return convert_floats<kAction, kFrom, DType::kFloat32>(call);
  }
}

template <Action kAction>
void convert_any(const ConvertCall& call) {
  if (call.source_dtype == DType::kFloat64 || call.destination_dtype == DType::kFloat64) {
    return convert_doubles<kAction>(call);
  }
  switch (call.source_dtype) {
    case DType::kBFloat16:
      return convert_from<kAction, DType::kBFloat16>(call);
    case DType::kFloat16:
      return convert_from<kAction, DType::kFloat16>(call);
    default:
      return convert_from<kAction, DType::kFloat32>(call);
  }
}

void convert(const ConvertCall& call) {
  convert_any<Action::kConvert>(call);
}

void accumulate(const ConvertCall& call) {
  convert_any<Action::kAccumulate>(call);
}

void copy(const void* source, void* destination, int64_t bytes) {
  if (!kCanStream || bytes < kStreamBytes) {
    copy_bytes(destination, source, static_cast<size_t>(bytes));
    return;
  }
  using D = hn::ScalableTag<uint8_t>;
  constexpr int64_t kLanes = static_cast<int64_t>(HWY_LANES(uint8_t)), kStep = 4 * kLanes;
  constexpr int64_t kPrefetch = 2048;  // bytes ahead; reading past the end this way cannot fault
  const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(destination) % 64);
  int64_t i = (64 - misaligned) % 64;
  copy_bytes(destination, source, static_cast<size_t>(i));
  const uint8_t* const from = at<uint8_t>(source, 0);
  uint8_t* const to = at<uint8_t>(destination, 0);
  for (; i + kStep <= bytes; i += kStep) {
    for (int64_t k = 0; k < kStep; k += 64) hwy::Prefetch(from + i + kPrefetch + k);
    for (int64_t k = 0; k < kStep; k += kLanes) hn::Stream(hn::LoadU(D(), from + i + k), D(), to + i + k);
  }
  hwy::FlushStream();  // orders the copy before whatever tells another rank about it
  copy_bytes(to + i, from + i, static_cast<size_t>(bytes - i));
}

void fill_spans(KernelTable& table) {
  table.sum_of_squares = sum_of_squares;
  table.convert = convert;
  table.accumulate = accumulate;
  table.copy = copy;
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace deepscale::kernels {

void fill_span_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_spans, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
