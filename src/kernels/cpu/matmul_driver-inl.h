// The products of matmul.h on one SIMD target: how rows of W and rows of x meet.
//
// x is packed once per pass in the order in which the lanes take it. Rows of W go by in tiles; for each block of k a
// tile's elements are decoded in registers and multiplied with up to kTileCols rows of x at a time. With many rows of x
// (or group sizes that cut steps of 32) a tile's block is decoded into the first-level cache instead. The sums of a
// chunk of rows wait in the workspace while its tiles pass one block of x, which so stays in the first-level cache;
// what a tile needs next is prefetched. Plain weights that meet one row of x go by row after row.
#if defined(DEEPSCALE_KERNELS_CPU_MATMUL_DRIVER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DEEPSCALE_KERNELS_CPU_MATMUL_DRIVER_INL_H_
#undef DEEPSCALE_KERNELS_CPU_MATMUL_DRIVER_INL_H_
#else
#define DEEPSCALE_KERNELS_CPU_MATMUL_DRIVER_INL_H_
#endif

#ifdef DEEPSCALE_MATMUL_BF16_DOT
#include "kernels/cpu/matmul_dot-inl.h"
#else
#include "kernels/cpu/matmul_float-inl.h"
#endif

DEEPSCALE_MATMUL_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace DEEPSCALE_MATMUL_NAMESPACE {

// Rows of W times rows of x whose sums are in registers: 16 of AVX-512's, 8 of the others'.
constexpr int kTileCols = kParts == 1 ? 4 : 2;
constexpr int kTileRows = kParts == 1 ? 4 : 2;
constexpr int kVectorRows = kParts == 1 ? 8 : 4;  // with one row of x
static_assert(kVectorRows <= kMatmulTileRows);

/// More rows of x than this: a block is decoded once into memory rather than once per kTileCols rows.
constexpr int64_t kDecodeInRegisters = (kPhases == 1 ? 4 : 2) * kTileCols;

/// Most groups that a block of k can touch when their size is a multiple of kStep.
constexpr int64_t kMaxBlockGroups = kMatmulBlock / kStep + 1;

/// One pass: the rows of x that are packed.
struct Pass {
  const MatmulCall* call;
  int64_t cols;     ///< rows of x (columns of the tile)
  int64_t stride;   ///< of packed x
  const Packed* x;  ///< packed
  float* sums;      ///< [cols][kMatmulChunkRows]
  Packed* tile;     ///< [kMatmulTileRows][kMatmulBlock]
};

/// kRows rows of W in one block of k.
template <int kRows>
struct BlockRows {
  const uint8_t* row[kRows];  ///< at the block's first element
  const uint8_t* ahead;       ///< the block that comes later, to be prefetched: its first row
  float inverse[kRows][kMaxBlockGroups + kLanes], minimum[kRows][kMaxBlockGroups + kLanes];
};

HWY_INLINE int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

/// Elements from one row of packed x to the next: an odd number of cache lines, so that rows do not share cache sets.
constexpr int64_t packed_stride(int64_t k) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(Packed));
  return ((k + kStep - 1) / kStep * kStep / kLine | 1) * kLine;
}

// ---- x --------------------------------------------------------------------------------------------------------------

template <WeightKind kKind>
void pack(const MatmulCall& call, int64_t first_row, int64_t rows, int64_t stride, Packed* packed) {
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t begin = (first_row + i) * call.args.x_stride;
    for (int64_t c = 0; c < call.k; c += kStep) {
      pack_step<kKind>(call.args.x, call.args.x_dtype, begin + c, min_of(call.k - c, kStep), packed + i * stride + c);
    }
  }
}

// ---- parameters of groups -------------------------------------------------------------------------------------------

/// 1 / scale and minimum of groups [begin, begin + count) of the matrix, of which there are `total`; count + kLanes
/// entries written at most. Reads whole vectors while the matrix has as many groups.
HWY_INLINE void load_params(const QuantizedMatrix& matrix, int64_t total, int64_t begin, int64_t count, float* inverse,
                            float* minimum) {
  const FloatTag d;
  const DType dtype = matrix.format.params_dtype;
  const V one = hn::Set(d, 1.0f), zero_point = hn::Set(d, -static_cast<float>(1 << (matrix.format.bits - 1)));
  for (int64_t i = 0; i < count; i += kFloatLanes) {
    const int64_t part = min_of(total - begin - i, kFloatLanes);
    const bool whole = part == kFloatLanes;
    const V scale =
        whole ? load(d, matrix.scales, dtype, begin + i) : load_part(d, matrix.scales, dtype, begin + i, part);
    const V quotient = hn::Div(one, scale);
    const V factor = hn::IfThenElse(hn::IsNaN(quotient), hn::BitCast(d, hn::Set(Words(), 0x7FC00000u)), quotient);
    hn::StoreU(factor, d, inverse + i);
    V offset;
    if (matrix.format.symmetric) {
      offset = hn::Mul(factor, zero_point);  // exact
    } else {
      offset =
          whole ? load(d, matrix.minimums, dtype, begin + i) : load_part(d, matrix.minimums, dtype, begin + i, part);
    }
    hn::StoreU(offset, d, minimum + i);
  }
}

/// The parameters of group `group`, one past the end at most.
HWY_INLINE void prefetch_params(const QuantizedMatrix& matrix, int64_t group) {
  const int64_t size = matrix.format.params_dtype == DType::kFloat32 ? 4 : 2;
  hwy::Prefetch(at<uint8_t>(matrix.scales, group * size));
  if (!matrix.format.symmetric) hwy::Prefetch(at<uint8_t>(matrix.minimums, group * size));
}

/// Rows [row, row + kRows), block [begin, end) of k. What follows is the next block of these rows, or the first one of
/// the tile at the same place of the next chunk.
template <WeightKind kKind, int kRows>
HWY_INLINE void load_block(const Pass& pass, int64_t row, int64_t begin, int64_t end, BlockRows<kRows>& block) {
  const MatmulCall& call = *pass.call;
  block.ahead = end < call.k ? at<uint8_t>(call.weights, row * call.row_bytes + bytes_of(kKind, end))
                             : at<uint8_t>(call.weights, (row + kMatmulChunkRows) * call.row_bytes);
  for (int r = 0; r < kRows; ++r) {
    block.row[r] = at<uint8_t>(call.weights, (row + r) * call.row_bytes + bytes_of(kKind, begin));
    if constexpr (is_quantized(kKind)) {
      const QuantizedMatrix& matrix = call.quantized;
      const int64_t size = matrix.format.group_size, first = begin / size;
      const int64_t groups = groups_per_row(call.k, matrix.format), group = (row + r) * groups;
      load_params(matrix, matrix.rows * groups, group + first, (end - 1) / size + 1 - first, block.inverse[r],
                  block.minimum[r]);
      prefetch_params(matrix, end < call.k ? group + end / size : group + kMatmulChunkRows * groups);
    }
  }
}

// ---- the product of one block ---------------------------------------------------------------------------------------

template <int kRows, int kCols>
struct Sums {
  Lanes lanes[kRows][kCols];
};

/// As many cache lines of the rows that start at `ahead` as a step at `offset` reads: where a line holds several steps,
/// each step takes a part of the rows.
template <WeightKind kKind, int kRows>
HWY_INLINE void prefetch_step(const uint8_t* ahead, int64_t row_bytes, int64_t offset) {
  constexpr int64_t kBytes = bytes_of(kKind, kStep);
  constexpr int kStepsPerLine = kBytes < 64 ? static_cast<int>(64 / kBytes) : 1;
  constexpr int kRowsPerStep = kRows < kStepsPerLine ? 1 : kRows / kStepsPerLine;
  constexpr int kLines = static_cast<int>((kBytes + 63) / 64);
  const uint8_t* const line = ahead + offset / kBytes % kStepsPerLine * kRowsPerStep * row_bytes + offset / 64 * 64;
  unrolled<kRowsPerStep>([&](auto r) DEEPSCALE_INLINE_LAMBDA {
    unrolled<kLines>([&](auto i) DEEPSCALE_INLINE_LAMBDA { hwy::Prefetch(line + r * row_bytes + 64 * i); });
  });
}

/// 32 elements of kRows rows at the same offset.
template <WeightKind kKind, int kRows, int kCols>
HWY_INLINE void multiply_step(const uint8_t* const (&rows)[kRows], int64_t offset, const Group<kKind> (&groups)[kRows],
                              const Packed* x, int64_t stride, Sums<kRows, kCols>& sums) {
  Step steps[kRows];
  unrolled<kRows>([&](auto r) DEEPSCALE_INLINE_LAMBDA { steps[r] = decode<kKind>(rows[r] + offset, groups[r]); });
  unrolled<kCols>([&](auto m) DEEPSCALE_INLINE_LAMBDA {
    const Step activations = load_step(x + m * stride);
    unrolled<kRows>([&](auto r) DEEPSCALE_INLINE_LAMBDA { add_products<0>(activations, steps[r], sums.lanes[r][m]); });
    if constexpr (kPhases == 2) {
      unrolled<kRows>([&](auto r)
                          DEEPSCALE_INLINE_LAMBDA { add_products<1>(activations, steps[r], sums.lanes[r][m]); });
    }
  });
}

template <WeightKind kKind, int kRows>
HWY_INLINE void make_groups(const BlockRows<kRows>& block, int64_t index, Group<kKind> (&groups)[kRows]) {
  if constexpr (is_quantized(kKind)) {
    unrolled<kRows>([&](auto r) DEEPSCALE_INLINE_LAMBDA {
      set_group<kKind>(block.inverse[r][index], block.minimum[r][index], groups[r]);
    });
  }
}

/// One block of k and kCols rows of x.
struct Block {
  int64_t begin, end;  ///< of k
  const Packed* x;     ///< packed, from the start of k
  int64_t stride;
  bool prefetches;
  float* totals;  ///< [m * kMatmulChunkRows + r]
};

/// Adds the products of a block to its totals.
template <WeightKind kKind, int kRows, int kCols>
void multiply_block(const MatmulCall& call, const BlockRows<kRows>& block_rows, const Block& block) {
  const int64_t begin = block.begin, end = block.end, stride = block.stride;
  const Packed* const x = block.x;
  Sums<kRows, kCols> sums;
  const uint8_t* rows[kRows];
  Group<kKind> groups[kRows];
  unrolled<kRows>([&](auto r) DEEPSCALE_INLINE_LAMBDA {
    rows[r] = block_rows.row[r];
    unrolled<kCols>([&](auto m) DEEPSCALE_INLINE_LAMBDA {
      unrolled<kParts>([&](auto p) DEEPSCALE_INLINE_LAMBDA { sums.lanes[r][m].part[p] = hn::Zero(FloatTag()); });
    });
  });
  const int64_t size = is_quantized(kKind) ? call.quantized.format.group_size : end;
  const int64_t first_group = begin / size, steps_end = end - (end - begin) % kStep;
  int64_t c = begin, offset = 0;
  for (int64_t g = first_group; c < steps_end; ++g) {
    make_groups<kKind>(block_rows, g - first_group, groups);
    const int64_t group_end = min_of(steps_end, (g + 1) * size);
    for (; c < group_end; c += kStep, offset += bytes_of(kKind, kStep)) {
      if (block.prefetches) prefetch_step<kKind, kRows>(block_rows.ahead, call.row_bytes, offset);
      multiply_step<kKind>(rows, offset, groups, x + c, stride, sums);
    }
  }
  if (c < end) {
    // Packed x ends in zeros: what the padding decodes to does not matter unless the group is NaN throughout.
    uint8_t padded[kRows][bytes_of(kKind, kStep)] = {};
    unrolled<kRows>([&](auto r) DEEPSCALE_INLINE_LAMBDA {
      copy_bytes(padded[r], rows[r] + offset, static_cast<size_t>(bytes_of(kKind, end - c)));
      rows[r] = padded[r];
    });
    make_groups<kKind>(block_rows, c / size - first_group, groups);
    multiply_step<kKind>(rows, 0, groups, x + c, stride, sums);
  }
  unrolled<kCols>([&](auto m) DEEPSCALE_INLINE_LAMBDA {
    unrolled<kRows>(
        [&](auto r) DEEPSCALE_INLINE_LAMBDA { block.totals[m * kMatmulChunkRows + r] += tree_sum(sums.lanes[r][m]); });
  });
}

/// All columns of a pass, kTileCols at a time.
template <WeightKind kKind, int kRows>
void multiply_columns(const Pass& pass, const BlockRows<kRows>& rows, int64_t begin, int64_t end, float* totals) {
  Block block{begin, end, pass.x, pass.stride, rows.ahead != nullptr, totals};
  constexpr int kCols = kRows == kTileRows ? kTileCols : 1;  // kVectorRows, or rows that are left over
  for (int64_t m = 0; m < pass.cols; m += kCols) {
    block.x = pass.x + m * pass.stride;
    block.totals = totals + m * kMatmulChunkRows;
    const int64_t left = min_of(pass.cols - m, kCols);
    if (left == 1) {
      multiply_block<kKind, kRows, 1>(*pass.call, rows, block);
    } else if constexpr (kCols == 2) {
      multiply_block<kKind, kRows, 2>(*pass.call, rows, block);
    } else if constexpr (kCols == 4) {
      if (left == 2) {
        multiply_block<kKind, kRows, 2>(*pass.call, rows, block);
      } else if (left == 3) {
        multiply_block<kKind, kRows, 3>(*pass.call, rows, block);
      } else {
        multiply_block<kKind, kRows, 4>(*pass.call, rows, block);
      }
    }
    block.prefetches = false;
  }
}

// ---- dequantised tiles ----------------------------------------------------------------------------------------------

/// A block of one row in the order of packed x, for groups that no step of 32 straddles.
template <WeightKind kKind>
void decode_row(const MatmulCall& call, const BlockRows<1>& block, int64_t begin, int64_t end, Packed* tile) {
  const int64_t size = call.quantized.format.group_size, first = begin / size;
  for (int64_t line = 0; line < bytes_of(kKind, end - begin); line += 64) hwy::Prefetch(block.ahead + line);
  for (int64_t c = begin; c < end;) {
    const int64_t g = c / size, piece_end = min_of(end, (g + 1) * size);
    Group<kKind> group;
    set_group<kKind>(block.inverse[0][g - first], block.minimum[0][g - first], group);
    for (; c < piece_end; c += kStep) {
      const uint8_t* bytes = block.row[0] + bytes_of(kKind, c - begin);
      uint8_t padded[bytes_of(kKind, kStep)] = {};
      if (c + kStep > piece_end) {
        copy_bytes(padded, bytes, static_cast<size_t>(bytes_of(kKind, piece_end - c)));
        bytes = padded;
      }
      store_step(decode<kKind>(bytes, group), tile + (c - begin));
    }
    c = piece_end;
  }
}

/// The same for any group size.
template <WeightKind kKind>
void decode_row_of_odd_groups(const MatmulCall& call, int64_t row, int64_t begin, int64_t end, Packed* tile) {
  const QuantizedMatrix& matrix = call.quantized;
  const FloatTag d;
  const int64_t size = matrix.format.group_size, groups = groups_per_row(matrix.cols, matrix.format);
  const uint8_t* const bytes = at<uint8_t>(call.weights, row * call.row_bytes);
  HWY_ALIGN float natural[kMatmulBlock + kStep] = {};
  float inverse[kLanes], minimum[kLanes];
  for (int64_t c = begin; c < end;) {
    const int64_t g = c / size, piece_end = min_of(end, (g + 1) * size);
    load_params(matrix, matrix.rows * groups, row * groups + g, 1, inverse, minimum);
    for (int64_t i = c; i < piece_end; ++i) {
      const int byte = bytes[matrix.format.bits == 4 ? i / 2 : i];
      const int q = matrix.format.bits == 8 ? byte : i % 2 == 0 ? byte >> 4 : byte & 15;
      natural[i - begin] = static_cast<float>(q);
    }
    const V factor = hn::Set(d, inverse[0]), offset = hn::Set(d, minimum[0]);
    for (int64_t i = c - begin; i < piece_end - begin; i += kFloatLanes) {  // past the piece: its elements come later
      hn::StoreU(element<kKind>(hn::LoadU(d, natural + i), factor, offset), d, natural + i);
    }
    c = piece_end;
  }
  for (int64_t c = 0; c < end - begin; c += kStep) permute<kKind>(natural + c, tile + c);
}

// ---- rows of W ------------------------------------------------------------------------------------------------------

HWY_INLINE bool has_odd_groups(const MatmulCall& call) {
  return call.quantized.format.group_size % kStep != 0 && call.quantized.format.group_size < call.k;
}

/// Rows [row, row + kRows), block [begin, end): decoded in registers, or first into the tile.
template <WeightKind kKind, int kRows>
void multiply_rows(const Pass& pass, int64_t row, int64_t begin, int64_t end, float* totals) {
  const MatmulCall& call = *pass.call;
  if constexpr (is_quantized(kKind)) {
    const bool odd = has_odd_groups(call);
    if (odd || pass.cols > kDecodeInRegisters) {
      BlockRows<kRows> decoded;
      decoded.ahead = nullptr;
      for (int r = 0; r < kRows; ++r) {
        Packed* const tile = pass.tile + r * kMatmulBlock;
        decoded.row[r] = reinterpret_cast<const uint8_t*>(tile);
        if (odd) {
          decode_row_of_odd_groups<kKind>(call, row + r, begin, end, tile);
        } else {
          BlockRows<1> block;
          load_block<kKind, 1>(pass, row + r, begin, end, block);
          decode_row<kKind>(call, block, begin, end, tile);
        }
      }
      // Tiles are padded to whole steps like x.
      multiply_columns<kTileKind, kRows>(pass, decoded, begin, begin + (end - begin + kStep - 1) / kStep * kStep,
                                         totals);
      return;
    }
  }
  BlockRows<kRows> block;
  load_block<kKind, kRows>(pass, row, begin, end, block);
  multiply_columns<kKind, kRows>(pass, block, begin, end, totals);
}

/// `count` elements of one plain row of W times one of x.
template <WeightKind kKind>
HWY_INLINE float stream_block(const uint8_t* bytes, const Packed* x, int64_t count) {
  constexpr int kUnroll = 8;
  const uint8_t* row[1] = {bytes};
  const Group<kKind> group[1] = {};
  Sums<1, 1> sums;
  unrolled<kParts>([&](auto p) DEEPSCALE_INLINE_LAMBDA { sums.lanes[0][0].part[p] = hn::Zero(FloatTag()); });
  const uint8_t* const end = bytes + bytes_of(kKind, count);
  for (; row[0] + bytes_of(kKind, kUnroll * kStep) <= end;
       row[0] += bytes_of(kKind, kUnroll * kStep), x += kUnroll * kStep) {
    unrolled<kUnroll>([&](auto u) DEEPSCALE_INLINE_LAMBDA {
      multiply_step<kKind>(row, bytes_of(kKind, u * kStep), group, x + u * kStep, 0, sums);
    });
  }
  for (; row[0] + bytes_of(kKind, kStep) <= end; row[0] += bytes_of(kKind, kStep), x += kStep) {
    multiply_step<kKind>(row, 0, group, x, 0, sums);
  }
  if (row[0] < end) {
    uint8_t padded[bytes_of(kKind, kStep)] = {};
    copy_bytes(padded, row[0], static_cast<size_t>(end - row[0]));
    row[0] = padded;
    multiply_step<kKind>(row, 0, group, x, 0, sums);
  }
  return tree_sum(sums.lanes[0][0]);
}

/// Plain rows that meet one row of x, one after the other: they come from memory and are used once, and as one long
/// stream they come faster than several side by side.
template <WeightKind kKind>
void stream_rows(const Pass& pass, RowRange rows) {
  const int64_t k = pass.call->k;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const uint8_t* const row = at<uint8_t>(pass.call->weights, r * pass.call->row_bytes);
    const int64_t whole = k / kMatmulBlock * kMatmulBlock;
    float sum = 0.0f;
    for (int64_t begin = 0; begin < whole; begin += kMatmulBlock) {
      sum += stream_block<kKind>(row + bytes_of(kKind, begin), pass.x + begin, kMatmulBlock);
    }
    if (whole < k) sum += stream_block<kKind>(row + bytes_of(kKind, whole), pass.x + whole, k - whole);
    pass.sums[r - rows.begin] = sum;
  }
}

/// Rows of a chunk, one block of k.
template <WeightKind kKind>
void multiply_rows_of_block(const Pass& pass, RowRange rows, int64_t begin, int64_t end) {
  int64_t r = rows.begin;
  if (pass.cols == 1) {
    for (; r + kVectorRows <= rows.end; r += kVectorRows) {
      multiply_rows<kKind, kVectorRows>(pass, r, begin, end, pass.sums + (r - rows.begin));
    }
  }
  for (; r + kTileRows <= rows.end; r += kTileRows) {
    multiply_rows<kKind, kTileRows>(pass, r, begin, end, pass.sums + (r - rows.begin));
  }
  for (; r < rows.end; ++r) multiply_rows<kKind, 1>(pass, r, begin, end, pass.sums + (r - rows.begin));
}

template <WeightKind kKind>
void multiply_chunk(const Pass& pass, RowRange rows) {
  if constexpr (!is_quantized(kKind)) {
    if (pass.cols == 1) return stream_rows<kKind>(pass, rows);
  }
  const int64_t k = pass.call->k;
  for (int64_t begin = 0; begin < k; begin += kMatmulBlock) {
    multiply_rows_of_block<kKind>(pass, rows, begin, min_of(k, begin + kMatmulBlock));
  }
}

/// Bias, rounding and stores of a chunk's sums; first_col is the pass's first row of x.
void finish_chunk(const Pass& pass, RowRange rows, int64_t first_col) {
  const FloatTag d;
  const MatmulArgs& args = pass.call->args;
  const int64_t count = rows.end - rows.begin;
  for (int64_t m = 0; m < pass.cols; ++m) {
    const float* const sums = pass.sums + m * kMatmulChunkRows;
    const int64_t out = (first_col + m) * args.y_stride + rows.begin;
    for (int64_t i = 0; i < count; i += kFloatLanes) {
      const int64_t part = min_of(count - i, kFloatLanes);
      V value = hn::LoadU(d, sums + i);  // the sums of a chunk are a whole number of vectors
      if (args.bias != nullptr) value = hn::Add(value, load_part(d, args.bias, args.bias_dtype, rows.begin + i, part));
      store_part(d, value, args.y, args.y_dtype, out + i, part);
    }
  }
}

template <WeightKind kKind>
void matmul_of(const MatmulCall& original) {
  const MatmulCall call = original;  // a local copy that the stores cannot alias
  const int64_t stride = packed_stride(call.k);
  const int64_t pass_rows = min_of(call.args.m, kMatmulPassRows);
  float* const sums = call.workspace;
  Packed* const tile = reinterpret_cast<Packed*>(sums + pass_rows * kMatmulChunkRows);
  Packed* const x = tile + kMatmulTileRows * kMatmulBlock;
  for (int64_t first = 0; first < call.args.m; first += kMatmulPassRows) {
    const Pass pass{&call, min_of(call.args.m - first, kMatmulPassRows), stride, x, sums, tile};
    pack<kKind>(call, first, pass.cols, stride, x);
    for (int64_t row = call.rows.begin; row < call.rows.end; row += kMatmulChunkRows) {
      const RowRange rows{row, min_of(call.rows.end, row + kMatmulChunkRows)};
      for (int64_t i = 0; i < pass.cols * kMatmulChunkRows; ++i) sums[i] = 0.0f;
      multiply_chunk<kKind>(pass, rows);
      finish_chunk(pass, rows, first);
    }
  }
}

}  // namespace DEEPSCALE_MATMUL_NAMESPACE
}  // namespace deepscale::kernels
DEEPSCALE_MATMUL_AFTER_NAMESPACE();

#endif  // toggling guard
