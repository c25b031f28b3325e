// reduce_buffers per SIMD target. Floats run on vectors (16-bit ones widened to fp32), integers on loops that the
// compiler vectorises; every element is combined in the order of the inputs.
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/reduce_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

/// Vectors per step of the loop, for instruction-level parallelism.
constexpr int kUnroll = 4;

/// How a dtype is read into vectors, combined and written back. Value holds kLanes elements.
template <DType kType>
struct Format {  // fp32 and fp16: computed in fp32
  using D = FloatTag;
  using Value = hn::Vec<D>;
  static constexpr int64_t kLanes = kFloatLanes;
  static HWY_INLINE Value read(const void* data, int64_t i) { return load(D(), data, kType, i); }
  static HWY_INLINE void write(Value value, void* data, int64_t i) { store(D(), value, data, kType, i); }
  static HWY_INLINE void stream(Value value, void* data, int64_t i) {
    if constexpr (kType == DType::kFloat16) {
      hn::Stream(round_float16(D(), value), hn::Rebind<uint16_t, D>(), at<uint16_t>(data, i));
    } else if constexpr (kType == DType::kFloat32) {
      hn::Stream(value, D(), at<float>(data, i));
    } else {
      write(value, data, i);  // bf16 of the scalar target
    }
  }
};

template <>
struct Format<DType::kFloat64> {
  using D = DoubleTag;
  using Value = hn::Vec<D>;
  static constexpr int64_t kLanes = kDoubleLanes;
  static HWY_INLINE Value read(const void* data, int64_t i) { return hn::LoadU(D(), at<double>(data, i)); }
  static HWY_INLINE void write(Value value, void* data, int64_t i) { hn::StoreU(value, D(), at<double>(data, i)); }
  static HWY_INLINE void stream(Value value, void* data, int64_t i) { hn::Stream(value, D(), at<double>(data, i)); }
};

// Max and min keep a NaN from either side, and the earlier of +0 and -0.
template <ReduceOp kOp, class V>
HWY_INLINE V combine(V a, V b) {
  if constexpr (kOp == ReduceOp::kMax) {
    return hn::IfThenElse(hn::Or(hn::Gt(b, a), hn::IsNaN(b)), b, a);
  } else if constexpr (kOp == ReduceOp::kMin) {
    return hn::IfThenElse(hn::Or(hn::Lt(b, a), hn::IsNaN(b)), b, a);
  } else if constexpr (kOp == ReduceOp::kProduct) {
    return hn::Mul(a, b);
  } else {
    return hn::Add(a, b);
  }
}

template <class V>
HWY_INLINE V scaled(V value, V factor) {
  return hn::Mul(value, factor);
}

#if HWY_TARGET != HWY_SCALAR

/// bf16 elements of even and odd index apart: each 32-bit lane holds two, so widening takes one shift or mask instead
/// of a shuffle, and all lanes of a register are used.
template <>
struct Format<DType::kBFloat16> {
  using D = FloatTag;
  using Bits = hn::Rebind<uint32_t, D>;
  struct Value {
    hn::Vec<D> even, odd;
  };
  static constexpr int64_t kLanes = 2 * kFloatLanes;

  static HWY_INLINE Value read(const void* data, int64_t i) {
    const auto pairs = hn::BitCast(Bits(), hn::LoadU(hn::Repartition<uint16_t, D>(), at<uint16_t>(data, i)));
    return {hn::BitCast(D(), hn::ShiftLeft<16>(pairs)), hn::BitCast(D(), hn::And(pairs, hn::Set(Bits(), 0xFFFF0000u)))};
  }
  static HWY_INLINE void write(Value value, void* data, int64_t i) {
    hn::StoreU(packed(value), hn::Repartition<uint16_t, D>(), at<uint16_t>(data, i));
  }
  static HWY_INLINE void stream(Value value, void* data, int64_t i) {
    hn::Stream(packed(value), hn::Repartition<uint16_t, D>(), at<uint16_t>(data, i));
  }

 private:
  static HWY_INLINE hn::Vec<hn::Repartition<uint16_t, D>> packed(Value value) {
    const auto even = hn::ShiftRight<16>(rounded_bfloat16_bits(value.even));
    const auto odd = hn::And(rounded_bfloat16_bits(value.odd), hn::Set(Bits(), 0xFFFF0000u));
    return hn::BitCast(hn::Repartition<uint16_t, D>(), hn::Or(even, odd));
  }
};

using Pair = Format<DType::kBFloat16>::Value;

template <ReduceOp kOp>
HWY_INLINE Pair combine(Pair a, Pair b) {
  return {combine<kOp>(a.even, b.even), combine<kOp>(a.odd, b.odd)};
}

HWY_INLINE Pair scaled(Pair value, hn::Vec<FloatTag> factor) {
  return {hn::Mul(value.even, factor), hn::Mul(value.odd, factor)};
}

#endif  // !HWY_SCALAR

enum class Writing { kCached, kStreamed };

/// Elements [begin, begin + kVectors * lanes) of all buffers. kInputs and kOutputs are the counts when they are known,
/// so that the pointers stay in registers, else 0.
template <DType kType, ReduceOp kOp, int kVectors, size_t kInputs, size_t kOutputs, Writing kWriting>
HWY_INLINE void reduce_step(const ReduceCall& call, hn::Vec<typename Format<kType>::D> average, int64_t begin) {
  using F = Format<kType>;
  const size_t input_count = kInputs != 0 ? kInputs : call.input_count;
  const size_t output_count = kOutputs != 0 ? kOutputs : call.output_count;
  typename F::Value sums[kVectors];
  for (int k = 0; k < kVectors; ++k) sums[k] = F::read(call.inputs[0], begin + k * F::kLanes);
  for (size_t r = 1; r < input_count; ++r) {
    const void* const input = call.inputs[r];
    for (int k = 0; k < kVectors; ++k) sums[k] = combine<kOp>(sums[k], F::read(input, begin + k * F::kLanes));
  }
  if constexpr (kOp == ReduceOp::kAvg) {
    for (int k = 0; k < kVectors; ++k) sums[k] = scaled(sums[k], average);
  }
  for (size_t r = 0; r < output_count; ++r) {
    void* const output = call.outputs[r];
    for (int k = 0; k < kVectors; ++k) {
      if constexpr (kWriting == Writing::kStreamed) {
        F::stream(sums[k], output, begin + k * F::kLanes);
      } else {
        F::write(sums[k], output, begin + k * F::kLanes);
      }
    }
  }
}

/// The last elements, fewer than a vector: through padded copies, so that the same vector code rounds them.
template <DType kType, ReduceOp kOp>
void reduce_tail(const ReduceCall& call, hn::Vec<typename Format<kType>::D> average, int64_t begin) {
  constexpr int64_t kWidth = size_of(kType);
  const size_t bytes = static_cast<size_t>((call.numel - begin) * kWidth);
  using F = Format<kType>;
  alignas(64) unsigned char padded[kMaxLanes * 8] = {};
  const auto read = [&](size_t r) HWY_ATTR {
    copy_bytes(padded, at<unsigned char>(call.inputs[r], begin * kWidth), bytes);
    return F::read(padded, 0);
  };
  auto sum = read(0);
  for (size_t r = 1; r < call.input_count; ++r) sum = combine<kOp>(sum, read(r));
  if constexpr (kOp == ReduceOp::kAvg) sum = scaled(sum, average);
  F::write(sum, padded, 0);
  for (size_t r = 0; r < call.output_count; ++r) {
    copy_bytes(at<unsigned char>(call.outputs[r], begin * kWidth), padded, bytes);
  }
}

template <DType kType, ReduceOp kOp, size_t kInputs, size_t kOutputs, Writing kWriting = Writing::kCached>
void reduce_counted(const ReduceCall& original) {
  using F = Format<kType>;
  using T = hn::TFromD<typename F::D>;
  // Local copies of the pointers: the vector stores cannot alias them.
  ReduceCall call = original;
  const void* inputs[kInputs + 1];
  void* outputs[kOutputs + 1];
  if constexpr (kInputs != 0 && kOutputs != 0) {
    for (size_t r = 0; r < kInputs; ++r) inputs[r] = original.inputs[r];
    for (size_t r = 0; r < kOutputs; ++r) outputs[r] = original.outputs[r];
    call.inputs = inputs;
    call.outputs = outputs;
  }
  const auto average = hn::Set(typename F::D(), T{1} / static_cast<T>(call.input_count));
  int64_t i = 0;
  for (; i + kUnroll * F::kLanes <= call.numel; i += kUnroll * F::kLanes) {
    reduce_step<kType, kOp, kUnroll, kInputs, kOutputs, kWriting>(call, average, i);
  }
  for (; i + F::kLanes <= call.numel; i += F::kLanes) {
    reduce_step<kType, kOp, 1, kInputs, kOutputs, Writing::kCached>(call, average, i);
  }
  if constexpr (kWriting == Writing::kStreamed) hwy::FlushStream();
  if (i < call.numel) reduce_tail<kType, kOp>(call, average, i);
}

/// Whether all outputs are large, aligned for streaming stores and no inputs (whose lines are in the cache already).
bool should_stream(const ReduceCall& call) {
  if (!kCanStream || call.numel * size_of(call.dtype) < kStreamBytes) return false;
  for (size_t w = 0; w < call.output_count; ++w) {
    if (reinterpret_cast<uintptr_t>(call.outputs[w]) % 64 != 0) return false;
    for (size_t r = 0; r < call.input_count; ++r) {
      if (call.inputs[r] == call.outputs[w]) return false;
    }
  }
  return true;
}

template <DType kType, ReduceOp kOp>
void reduce_floats(const ReduceCall& call) {
  constexpr bool kCommon = kOp == ReduceOp::kSum || kOp == ReduceOp::kAvg;
  if constexpr (kCommon) {
    if (should_stream(call)) return reduce_counted<kType, kOp, 0, 0, Writing::kStreamed>(call);
    if (call.input_count == 2 && call.output_count == 1) return reduce_counted<kType, kOp, 2, 1>(call);
    if (call.input_count == 2 && call.output_count == 2) return reduce_counted<kType, kOp, 2, 2>(call);
  }
  reduce_counted<kType, kOp, 0, 0>(call);
}

template <DType kType>
void reduce_floats_of(const ReduceCall& call) {
  switch (call.op) {
    case ReduceOp::kSum:
      return reduce_floats<kType, ReduceOp::kSum>(call);
    case ReduceOp::kAvg:
      return reduce_floats<kType, ReduceOp::kAvg>(call);
    case ReduceOp::kMax:
      return reduce_floats<kType, ReduceOp::kMax>(call);
    case ReduceOp::kMin:
      return reduce_floats<kType, ReduceOp::kMin>(call);
    case ReduceOp::kProduct:
      return reduce_floats<kType, ReduceOp::kProduct>(call);
  }
}

// Integers: sums and products wrap in 64 bits and are cut to the element; averages divide the 64-bit sum.
template <class T, ReduceOp kOp>
HWY_INLINE int64_t combine_integers(int64_t a, int64_t b) {
  if constexpr (kOp == ReduceOp::kMax) return b > a ? b : a;
  if constexpr (kOp == ReduceOp::kMin) return b < a ? b : a;
  if constexpr (kOp == ReduceOp::kProduct)
    return static_cast<int64_t>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
  return static_cast<int64_t>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
}

template <class T, ReduceOp kOp>
void reduce_integers(const ReduceCall& call) {
  constexpr int64_t kBlock = 64;
  int64_t sums[kBlock];
  for (int64_t begin = 0; begin < call.numel; begin += kBlock) {
    const int64_t count = call.numel - begin < kBlock ? call.numel - begin : kBlock;
    const T* const first = at<T>(call.inputs[0], begin);
    for (int64_t i = 0; i < count; ++i) sums[i] = static_cast<int64_t>(first[i]);
    for (size_t r = 1; r < call.input_count; ++r) {
      const T* const next = at<T>(call.inputs[r], begin);
      for (int64_t i = 0; i < count; ++i) sums[i] = combine_integers<T, kOp>(sums[i], static_cast<int64_t>(next[i]));
    }
    if constexpr (kOp == ReduceOp::kAvg) {
      for (int64_t i = 0; i < count; ++i) sums[i] /= static_cast<int64_t>(call.input_count);
    }
    for (size_t r = 0; r < call.output_count; ++r) {
      T* const output = at<T>(call.outputs[r], begin);
      for (int64_t i = 0; i < count; ++i) output[i] = static_cast<T>(sums[i]);
    }
  }
}

template <class T>
void reduce_integers_of(const ReduceCall& call) {
  switch (call.op) {
    case ReduceOp::kSum:
      return reduce_integers<T, ReduceOp::kSum>(call);
    case ReduceOp::kAvg:
      return reduce_integers<T, ReduceOp::kAvg>(call);
    case ReduceOp::kMax:
      return reduce_integers<T, ReduceOp::kMax>(call);
    case ReduceOp::kMin:
      return reduce_integers<T, ReduceOp::kMin>(call);
    case ReduceOp::kProduct:
      return reduce_integers<T, ReduceOp::kProduct>(call);
  }
}

// Booleans are the bytes 0 and 1: a sum is "any", a product is "all".
void reduce_booleans(ReduceCall call) {
  if (call.op == ReduceOp::kSum) call.op = ReduceOp::kMax;
  if (call.op == ReduceOp::kProduct) call.op = ReduceOp::kMin;
  reduce_integers_of<uint8_t>(call);
}

void reduce(const ReduceCall& call) {
  switch (call.dtype) {
    case DType::kFloat32:
      return reduce_floats_of<DType::kFloat32>(call);
    case DType::kBFloat16:
      return reduce_floats_of<DType::kBFloat16>(call);
    case DType::kFloat16:
      return reduce_floats_of<DType::kFloat16>(call);
    case DType::kFloat64:
      return reduce_floats_of<DType::kFloat64>(call);
    case DType::kInt8:
      return reduce_integers_of<int8_t>(call);
    case DType::kUInt8:
      return reduce_integers_of<uint8_t>(call);
    case DType::kInt16:
      return reduce_integers_of<int16_t>(call);
    case DType::kInt32:
      return reduce_integers_of<int32_t>(call);
    case DType::kInt64:
      return reduce_integers_of<int64_t>(call);
    case DType::kBool:
      return reduce_booleans(call);
  }
}

void fill_reduce(KernelTable& table) {
  table.reduce = reduce;
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace deepscale::kernels {

void fill_reduce_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_reduce, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
