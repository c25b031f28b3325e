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
  __builtin_memcpy(padded, at<unsigned char>(data, index * width), static_cast<size_t>(count * width));
  return load_double(padded, dtype, 0);
}

HWY_INLINE void store_double_part(VD value, void* data, DType dtype, int64_t index, int64_t count) {
  alignas(64) unsigned char padded[kMaxLanes * sizeof(double)];
  const int64_t width = size_of(dtype);
  store_double(value, padded, dtype, 0);
  __builtin_memcpy(at<unsigned char>(data, index * width), padded, static_cast<size_t>(count * width));
}

constexpr int64_t kNormLanes = 16;
constexpr int kNormVectors = static_cast<int>(kNormLanes / kDoubleLanes);

/// One block of at most kNormBlock elements. Padding with zeros adds exact zeros.
template <DType kType>
double block_sum_of_squares(const void* values, int64_t begin, int64_t count) {
  VD lanes[kNormVectors];
  for (int k = 0; k < kNormVectors; ++k) lanes[k] = hn::Zero(DoubleTag());
  int64_t i = 0;
  for (; i + kNormLanes <= count; i += kNormLanes) {
    for (int k = 0; k < kNormVectors; ++k) {
      const VD x = load_double(values, kType, begin + i + k * kDoubleLanes);
      lanes[k] = fused(x, x, lanes[k]);
    }
  }
  for (int k = 0; k < kNormVectors && i < count; ++k, i += kDoubleLanes) {
    const int64_t rest = count - i < kDoubleLanes ? count - i : kDoubleLanes;
    const VD x = load_double_part(values, kType, begin + i, rest);
    lanes[k] = fused(x, x, lanes[k]);
  }
  HWY_ALIGN double sums[kNormLanes];
  for (int k = 0; k < kNormVectors; ++k) hn::StoreU(lanes[k], DoubleTag(), sums + k * kDoubleLanes);
  for (int64_t half = kNormLanes / 2; half > 0; half /= 2) {
    for (int64_t j = 0; j < half; ++j) sums[j] += sums[j + half];
  }
  return sums[0];
}

template <DType kType>
void sums_of_squares(const void* values, int64_t numel, double* partials) {
  for (int64_t begin = 0, block = 0; begin < numel; begin += kNormBlock, ++block) {
    const int64_t count = numel - begin < kNormBlock ? numel - begin : kNormBlock;
    partials[block] = block_sum_of_squares<kType>(values, begin, count);
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

/// Conversions and accumulations that touch no fp64: fp32 arithmetic.
template <bool kAccumulate>
void convert_floats(const ConvertCall& c) {
  const FloatTag d;
  const auto scale = hn::Set(d, static_cast<float>(c.scale));
  int64_t i = 0;
  for (; i + kFloatLanes <= c.numel; i += kFloatLanes) {
    const auto x = load(d, c.source, c.source_dtype, i);
    const auto y = kAccumulate ? hn::Add(load(d, c.destination, c.destination_dtype, i), x) : hn::Mul(x, scale);
    store(d, y, c.destination, c.destination_dtype, i);
  }
  if (i == c.numel) return;
  const int64_t rest = c.numel - i;
  const auto x = load_part(d, c.source, c.source_dtype, i, rest);
  const auto y =
      kAccumulate ? hn::Add(load_part(d, c.destination, c.destination_dtype, i, rest), x) : hn::Mul(x, scale);
  store_part(d, y, c.destination, c.destination_dtype, i, rest);
}

/// Those with fp64 on a side: double arithmetic, then fp32, then 16 bits where needed.
template <bool kAccumulate>
void convert_doubles(const ConvertCall& c) {
  const VD scale = hn::Set(DoubleTag(), c.scale);
  for (int64_t i = 0; i < c.numel; i += kDoubleLanes) {
    const int64_t count = c.numel - i < kDoubleLanes ? c.numel - i : kDoubleLanes;
    const VD x = load_double_part(c.source, c.source_dtype, i, count);
    const VD y =
        kAccumulate ? hn::Add(load_double_part(c.destination, c.destination_dtype, i, count), x) : hn::Mul(x, scale);
    store_double_part(y, c.destination, c.destination_dtype, i, count);
  }
}

template <bool kAccumulate>
void convert_any(const ConvertCall& call) {
  if (call.source_dtype == DType::kFloat64 || call.destination_dtype == DType::kFloat64) {
    convert_doubles<kAccumulate>(call);
  } else {
    convert_floats<kAccumulate>(call);
  }
}

void convert(const ConvertCall& call) {
  convert_any<false>(call);
}

void accumulate(const ConvertCall& call) {
  convert_any<true>(call);
}

void copy(const void* source, void* destination, int64_t bytes) {
  __builtin_memcpy(destination, source, static_cast<size_t>(bytes));
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

HWY_EXPORT(fill_spans);

void fill_span_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_spans, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
