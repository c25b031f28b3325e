// Group-wise quantisation per SIMD target (formulas and contracts in quantize.h). A row is done in two passes: the
// parameters of its groups, then its elements in chunks that start at even columns, through a buffer of one byte per
// element.
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

using V = hn::Vec<FloatTag>;

/// Elements per pass through the byte buffer; even, so that 4-bit pairs never straddle chunks.
constexpr int64_t kChunk = 512;

HWY_INLINE V set(float value) {
  return hn::Set(FloatTag(), value);
}

constexpr float kNan = __builtin_nanf("");

template <DType kType>
constexpr float largest() {
  return kType == DType::kFloat32 ? 0x1.fffffep127f : kType == DType::kBFloat16 ? 0x1.fep127f : 65504.0f;
}

/// rnd() of the contract: to the nearest number of kType, as fp32.
template <DType kType>
HWY_INLINE V rounded(V value) {
  const FloatTag d;
  if constexpr (kType == DType::kBFloat16) {
    const hn::RebindToUnsigned<FloatTag> du;
    return hn::BitCast(d, hn::And(rounded_bfloat16_bits(value), hn::Set(du, 0xFFFF0000u)));
  } else if constexpr (kType == DType::kFloat16) {
    return widen_float16(d, round_float16(d, value));
  } else {
    return value;
  }
}

/// A NaN stays one.
HWY_INLINE V saturated(V value, float limit) {
  return hn::IfThenElse(hn::Gt(hn::Abs(value), set(limit)), hn::CopySign(set(limit), value), value);
}

struct Extent {
  float low, high;
  bool finite;
};

/// Smallest and largest of elements [begin, begin + count), count > 0.
template <DType kIn>
HWY_INLINE Extent extent_of(const void* row, int64_t begin, int64_t count) {
  const FloatTag d;
  V low = set(0x1.fffffep127f), high = set(-0x1.fffffep127f), differences = hn::Zero(d);
  const auto take = [&](V x) HWY_ATTR {
    low = hn::Min(low, x);
    high = hn::Max(high, x);
    differences = hn::Add(differences, hn::Sub(x, x));  // NaN from the first infinity or NaN on
  };
  int64_t i = 0;
  for (; i + kFloatLanes <= count; i += kFloatLanes) take(load(d, row, kIn, begin + i));
  if (i < count) {
    const V rest = load_part(d, row, kIn, begin + i, count - i);
    const V first = hn::Set(d, hn::GetLane(rest));
    take(hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(count - i)), rest, first));
  }
  HWY_ALIGN float lows[kFloatLanes], highs[kFloatLanes], zeros[kFloatLanes];
  hn::Store(low, d, lows);
  hn::Store(high, d, highs);
  hn::Store(differences, d, zeros);
  Extent extent{lows[0], highs[0], zeros[0] == 0.0f};
  for (int64_t lane = 1; lane < kFloatLanes; ++lane) {
    if (lows[lane] < extent.low) extent.low = lows[lane];
    if (highs[lane] > extent.high) extent.high = highs[lane];
    extent.finite = extent.finite && zeros[lane] == 0.0f;
  }
  return extent;
}

struct GroupParams {
  V scale, minimum;
};

template <DType kParams>
HWY_INLINE GroupParams params_of(const Extent& extent, const GroupFormat& format) {
  if (!extent.finite) return {set(kNan), set(kNan)};
  constexpr float kLargest = largest<kParams>();
  V range, minimum = hn::Zero(FloatTag());
  float levels = static_cast<float>((1 << format.bits) - 1);
  if (format.symmetric) {
    range = set(extent.high > -extent.low ? extent.high : -extent.low);
    levels = static_cast<float>((1 << (format.bits - 1)) - 1);
  } else {
    range = hn::Sub(set(extent.high), set(extent.low));
    // + 0: a minimum of -0 could be +0 on a target that looks at the elements in another order.
    minimum = hn::Add(saturated(rounded<kParams>(set(extent.low)), kLargest), minimum);
  }
  range = saturated(rounded<kParams>(hn::Abs(range)), kLargest);  // -0 would give a negative scale
  const V inverse = rounded<kParams>(hn::Div(set(1.0f), range));
  return {saturated(rounded<kParams>(hn::Mul(inverse, set(levels))), kLargest), minimum};
}

template <DType kIn, DType kParams>
void write_params(const void* row, int64_t row_index, const QuantizedMatrix& matrix) {
  const int64_t groups = groups_per_row(matrix.cols, matrix.format), size = matrix.format.group_size;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * size, count = matrix.cols - begin < size ? matrix.cols - begin : size;
    const GroupParams params = params_of<kParams>(extent_of<kIn>(row, begin, count), matrix.format);
    store_part(FloatTag(), params.scale, matrix.scales, kParams, row_index * groups + g, 1);
    if (!matrix.format.symmetric) {
      store_part(FloatTag(), params.minimum, matrix.minimums, kParams, row_index * groups + g, 1);
    }
  }
}

HWY_INLINE V param(const void* params, DType dtype, int64_t index) {
  const FloatTag d;
  return hn::Set(d, hn::GetLane(load_part(d, params, dtype, index, 1)));
}

/// Calls work(group's params, first column, number of columns) for each piece of a group in [begin, end) of a row.
template <DType kParams, class Work>
HWY_INLINE void for_each_piece(const QuantizedMatrix& matrix, int64_t row_index, int64_t begin, int64_t end,
                               const Work& work) {
  const int64_t groups = groups_per_row(matrix.cols, matrix.format), size = matrix.format.group_size;
  for (int64_t col = begin; col < end;) {
    const int64_t g = col / size, index = row_index * groups + g;
    const int64_t piece_end = (g + 1) * size < end ? (g + 1) * size : end;
    const V minimum = matrix.format.symmetric ? hn::Zero(FloatTag()) : param(matrix.minimums, kParams, index);
    work(GroupParams{param(matrix.scales, kParams, index), minimum}, col, piece_end - col);
    col = piece_end;
  }
}

/// What is stored is round(clamp(value, low, high)) + offset; q of NaN params is 0.
struct Levels {
  float low, high;
  uint32_t offset;
};

HWY_INLINE Levels levels_of(const GroupFormat& format) {
  if (!format.symmetric) return {0.0f, static_cast<float>((1 << format.bits) - 1), 0};
  const auto half = static_cast<float>(1 << (format.bits - 1));
  return {1.0f - half, half - 1.0f, static_cast<uint32_t>(half)};
}

template <DType kParams>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<FloatTag>> quantized(V x, const GroupParams& params, const Levels& levels) {
  const hn::RebindToUnsigned<FloatTag> du;
  const V moved = rounded<kParams>(hn::Sub(x, params.minimum));  // x itself when symmetric
  const V scaled = rounded<kParams>(hn::Mul(moved, params.scale));
  const V clamped = hn::Min(hn::Max(scaled, set(levels.low)), set(levels.high));
  // From 2^23 on the unit of fp32 is 1: the sum is rounded to the nearest even integer, which then is its low byte.
  const auto integer = hn::BitCast(du, hn::Add(clamped, set(0x1.8p23f)));
  const auto bytes = hn::And(hn::Add(integer, hn::Set(du, levels.offset)), hn::Set(du, 0xFF));
  return hn::IfThenElseZero(hn::RebindMask(du, hn::Eq(params.scale, params.scale)), bytes);
}

template <DType kIn, DType kParams>
HWY_INLINE void quantize_piece(const void* row, const GroupParams& params, const Levels& levels, int64_t begin,
                               int64_t count, uint8_t* bytes) {
  const FloatTag d;
  const hn::Rebind<uint8_t, FloatTag> d8;
  const hn::RebindToSigned<FloatTag> di;
  int64_t i = 0;
  for (; i + kFloatLanes <= count; i += kFloatLanes) {
    const auto q = quantized<kParams>(load(d, row, kIn, begin + i), params, levels);
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di, q)), d8, bytes + i);
  }
  if (kFloatLanes == 1 || i >= count) return;
  const auto q = quantized<kParams>(load_part(d, row, kIn, begin + i, count - i), params, levels);
  uint8_t rest[kMaxLanes];
  hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di, q)), d8, rest);
  copy_bytes(bytes + i, rest, static_cast<size_t>(count - i));
}

HWY_INLINE void pack(const uint8_t* bytes, int64_t count, const GroupFormat& format, uint8_t* values) {
  if (format.bits == 8) {
    copy_bytes(values, bytes, static_cast<size_t>(count));
    return;
  }
  for (int64_t i = 0; i < count / 2; ++i) {
    values[i] = static_cast<uint8_t>(bytes[2 * i] << 4 | bytes[2 * i + 1]);
  }
  if (count % 2 != 0) values[count / 2] = static_cast<uint8_t>(bytes[count - 1] << 4);
}

HWY_INLINE void unpack(const uint8_t* values, int64_t count, const GroupFormat& format, uint8_t* bytes) {
  if (format.bits == 8) {
    copy_bytes(bytes, values, static_cast<size_t>(count));
    return;
  }
  for (int64_t i = 0; i < (count + 1) / 2; ++i) {
    bytes[2 * i] = static_cast<uint8_t>(values[i] >> 4);
    bytes[2 * i + 1] = static_cast<uint8_t>(values[i] & 15);
  }
}

HWY_INLINE uint8_t* values_at(const QuantizedMatrix& matrix, int64_t row, int64_t col) {
  return at<uint8_t>(matrix.values,
                     row * row_bytes(matrix.cols, matrix.format) + (matrix.format.bits == 4 ? col / 2 : col));
}

template <DType kIn, DType kParams>
void quantize_rows(const QuantizeCall& call) {
  const QuantizedMatrix matrix = call.matrix;
  const Levels levels = levels_of(matrix.format);
  alignas(64) uint8_t bytes[kChunk];
  for (int64_t r = call.rows.begin; r < call.rows.end; ++r) {
    const void* const row = at<uint8_t>(call.weights, r * matrix.cols * size_of(kIn));
    write_params<kIn, kParams>(row, r, matrix);
    for (int64_t begin = 0; begin < matrix.cols; begin += kChunk) {
      const int64_t end = begin + kChunk < matrix.cols ? begin + kChunk : matrix.cols;
      for_each_piece<kParams>(matrix, r, begin, end,
                              [&](const GroupParams& params, int64_t col, int64_t count) HWY_ATTR {
                                quantize_piece<kIn, kParams>(row, params, levels, col, count, bytes + (col - begin));
                              });
      pack(bytes, end - begin, matrix.format, values_at(matrix, r, begin));
    }
  }
}

template <DType kParams>
HWY_INLINE V dequantized(const uint8_t* bytes, const GroupParams& params, V offset) {
  const FloatTag d;
  const auto integers =
      hn::PromoteTo(hn::RebindToSigned<FloatTag>(), hn::LoadU(hn::Rebind<uint8_t, FloatTag>(), bytes));
  const V q = hn::Sub(hn::ConvertTo(d, integers), offset);
  const V quotient = saturated(rounded<kParams>(hn::Div(q, params.scale)), largest<kParams>());
  return rounded<kParams>(hn::Add(quotient, params.minimum));
}

template <DType kOut, DType kParams>
HWY_INLINE void dequantize_piece(const uint8_t* bytes, const GroupParams& params, V offset, int64_t begin,
                                 int64_t count, void* row) {
  const FloatTag d;
  int64_t i = 0;
  for (; i + kFloatLanes <= count; i += kFloatLanes) {
    store(d, dequantized<kParams>(bytes + i, params, offset), row, kOut, begin + i);
  }
  if (kFloatLanes == 1 || i >= count) return;
  uint8_t rest[kMaxLanes] = {};
  copy_bytes(rest, bytes + i, static_cast<size_t>(count - i));
  store_part(d, dequantized<kParams>(rest, params, offset), row, kOut, begin + i, count - i);
}

template <DType kOut, DType kParams>
void dequantize_rows(const QuantizeCall& call) {
  const QuantizedMatrix matrix = call.matrix;
  const V offset = set(static_cast<float>(levels_of(matrix.format).offset));
  alignas(64) uint8_t bytes[kChunk];
  for (int64_t r = call.rows.begin; r < call.rows.end; ++r) {
    void* const row = at<uint8_t>(call.weights, r * matrix.cols * size_of(kOut));
    for (int64_t begin = 0; begin < matrix.cols; begin += kChunk) {
      const int64_t end = begin + kChunk < matrix.cols ? begin + kChunk : matrix.cols;
      unpack(values_at(matrix, r, begin), end - begin, matrix.format, bytes);
      for_each_piece<kParams>(matrix, r, begin, end,
                              [&](const GroupParams& params, int64_t col, int64_t count) HWY_ATTR {
                                dequantize_piece<kOut, kParams>(bytes + (col - begin), params, offset, col, count, row);
                              });
    }
  }
}

template <DType kWeights>
void quantize_with(const QuantizeCall& call) {
  switch (call.matrix.format.params_dtype) {
    case DType::kBFloat16:
      return quantize_rows<kWeights, DType::kBFloat16>(call);
    case DType::kFloat16:
      return quantize_rows<kWeights, DType::kFloat16>(call);
    default:
      return quantize_rows<kWeights, DType::kFloat32>(call);
  }
}

template <DType kWeights>
void dequantize_with(const QuantizeCall& call) {
  switch (call.matrix.format.params_dtype) {
    case DType::kBFloat16:
      return dequantize_rows<kWeights, DType::kBFloat16>(call);
    case DType::kFloat16:
      return dequantize_rows<kWeights, DType::kFloat16>(call);
    default:
      return dequantize_rows<kWeights, DType::kFloat32>(call);
  }
}

void quantize(const QuantizeCall& call) {
  switch (call.weights_dtype) {
    case DType::kBFloat16:
      return quantize_with<DType::kBFloat16>(call);
    case DType::kFloat16:
      return quantize_with<DType::kFloat16>(call);
    default:
      return quantize_with<DType::kFloat32>(call);
  }
}

void dequantize(const QuantizeCall& call) {
  switch (call.weights_dtype) {
    case DType::kBFloat16:
      return dequantize_with<DType::kBFloat16>(call);
    case DType::kFloat16:
      return dequantize_with<DType::kFloat16>(call);
    default:
      return dequantize_with<DType::kFloat32>(call);
  }
}

void fill_quantize(KernelTable& table) {
  table.quantize = quantize;
  table.dequantize = dequantize;
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace deepscale::kernels {

void fill_quantize_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_quantize, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
