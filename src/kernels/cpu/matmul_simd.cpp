// Products with weights stored row by output, per SIMD target (contracts and numerics in matmul.h).
//
// x is packed once per pass as fp32 in the order in which the lanes take it. Rows of W go by in tiles; for each block
// of k a tile's elements are decoded in registers and multiplied with up to kTileCols rows of x at a time. With many
// rows of x (or group sizes that cut steps of 32) a tile's block is decoded into fp32 in the first-level cache instead,
// and the sums of a chunk of rows wait in the workspace while all rows of W pass one block of x, which so stays in the
// second-level cache.
#include "kernels/cpu/kernel_table.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/matmul_simd.cpp"
#include "hwy/foreach_target.h"  // must come before highway.h
#include "kernels/cpu/matmul_decode-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace deepscale::kernels {
namespace HWY_NAMESPACE {

// Rows of W times rows of x whose sums are in registers: 16 of AVX-512's, 8 of the others'.
constexpr int kTileCols = kParts == 1 ? 4 : 2;
constexpr int kTileRows = kParts == 1 ? 4 : 2;
constexpr int kVectorRows = kParts == 1 ? 8 : 4;  // with one row of x
static_assert(kVectorRows <= kMatmulTileRows);

/// More rows of x than this: a block is decoded once into memory rather than once per kTileCols rows.
constexpr int64_t kDecodeInRegisters = 2 * kTileCols;

/// Most groups that a block of k can touch when their size is a multiple of kStep.
constexpr int64_t kMaxBlockGroups = kMatmulBlock / kStep + 1;

/// One pass: the rows of x that are packed.
struct Pass {
  const MatmulCall* call;
  int64_t cols;    ///< rows of x (columns of the tile)
  int64_t stride;  ///< of packed x
  const float* x;  ///< packed
  float* sums;     ///< [cols][kMatmulChunkRows]
  float* tile;     ///< [kMatmulTileRows][kMatmulBlock]
};

/// kRows rows of W in one block of k.
template <int kRows>
struct BlockRows {
  const uint8_t* row[kRows];  ///< at the block's first element
  float inverse[kRows][kMaxBlockGroups + kLanes], minimum[kRows][kMaxBlockGroups + kLanes];
};

int64_t min_of(int64_t a, int64_t b) {
  return a < b ? a : b;
}

// ---- x --------------------------------------------------------------------------------------------------------------

template <bool kPaired>
void pack_row(const void* x, DType dtype, int64_t begin, int64_t k, float* packed) {
  const FloatTag d;
  HWY_ALIGN float natural[kStep];
  for (int64_t c = 0; c < k; c += kStep) {
    float* const out = packed + c;
    float* const target = kPaired ? natural : out;
    for (int64_t i = 0; i < kStep; i += kFloatLanes) {
      const int64_t left = k - c - i;
      const V value = left >= kFloatLanes ? load(d, x, dtype, begin + c + i)
                      : left > 0          ? load_part(d, x, dtype, begin + c + i, left)
                                          : hn::Zero(d);
      hn::StoreU(value, d, target + i);
    }
    if constexpr (kPaired) {
      for (int j = 0; j < kLanes; ++j) {
        out[j] = natural[2 * j + 1];
        out[kLanes + j] = natural[2 * j];
      }
    }
  }
}

template <WeightKind kKind>
void pack(const MatmulCall& call, int64_t first_row, int64_t rows, int64_t stride, float* packed) {
  for (int64_t i = 0; i < rows; ++i) {
    pack_row<is_paired(kKind)>(call.args.x, call.args.x_dtype, (first_row + i) * call.args.x_stride, call.k,
                               packed + i * stride);
  }
}

// ---- parameters of groups -------------------------------------------------------------------------------------------

/// 1 / scale and minimum of groups [begin, begin + count) of a row, count + kLanes entries written at most.
HWY_INLINE void load_params(const QuantizedMatrix& matrix, int64_t begin, int64_t count, float* inverse,
                            float* minimum) {
  const FloatTag d;
  const DType dtype = matrix.format.params_dtype;
  const V one = hn::Set(d, 1.0f), zero_point = hn::Set(d, -static_cast<float>(1 << (matrix.format.bits - 1)));
  for (int64_t i = 0; i < count; i += kFloatLanes) {
    const int64_t part = min_of(count - i, kFloatLanes);
    const bool whole = part == kFloatLanes;
    const V scale =
        whole ? load(d, matrix.scales, dtype, begin + i) : load_part(d, matrix.scales, dtype, begin + i, part);
    const V factor = hn::Div(one, scale);
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

template <WeightKind kKind, int kRows>
HWY_INLINE void load_block(const MatmulCall& call, int64_t row, int64_t begin, int64_t end, BlockRows<kRows>& block) {
  for (int r = 0; r < kRows; ++r) {
    block.row[r] = at<uint8_t>(call.weights, (row + r) * call.row_bytes + bytes_of(kKind, begin));
    if constexpr (is_quantized(kKind)) {
      const int64_t size = call.quantized.format.group_size, first = begin / size;
      load_params(call.quantized, (row + r) * groups_per_row(call.k, call.quantized.format) + first,
                  (end - 1) / size + 1 - first, block.inverse[r], block.minimum[r]);
    }
  }
}

// ---- the product of one block ---------------------------------------------------------------------------------------

template <WeightKind kKind, int kRows, int kCols>
HWY_INLINE void multiply_step(const uint8_t* const* weights, const Group<kKind>* groups, const float* x, int64_t stride,
                              Lanes (&sums)[kRows][kCols]) {
  Step steps[kRows];
  for (int r = 0; r < kRows; ++r) steps[r] = decode<kKind>(weights[r], groups[r]);
  for (int m = 0; m < kCols; ++m) {
    const Lanes first = load_lanes(x + m * stride);
    for (int r = 0; r < kRows; ++r) add_products(first, steps[r].first, sums[r][m]);
  }
  for (int m = 0; m < kCols; ++m) {
    const Lanes second = load_lanes(x + m * stride + kLanes);
    for (int r = 0; r < kRows; ++r) add_products(second, steps[r].second, sums[r][m]);
  }
}

/// Elements [0, count) of a block that share a group; count is no multiple of kStep only at the end of the rows.
template <WeightKind kKind, int kRows, int kCols>
HWY_INLINE void multiply_piece(const uint8_t* const* rows, const Group<kKind>* groups, const float* x, int64_t stride,
                               int64_t count, Lanes (&sums)[kRows][kCols]) {
  const uint8_t* weights[kRows];
  for (int r = 0; r < kRows; ++r) weights[r] = rows[r];
  int64_t c = 0;
  for (; c + kStep <= count; c += kStep) {
    multiply_step<kKind, kRows, kCols>(weights, groups, x + c, stride, sums);
    for (int r = 0; r < kRows; ++r) weights[r] += bytes_of(kKind, kStep);
  }
  if (c >= count) return;
  // Packed x ends in zeros: what the padding decodes to does not matter unless the group is NaN throughout.
  uint8_t padded[kRows][bytes_of(kKind, kStep)] = {};
  for (int r = 0; r < kRows; ++r) {
    copy_bytes(padded[r], weights[r], static_cast<size_t>(bytes_of(kKind, count - c)));
    weights[r] = padded[r];
  }
  multiply_step<kKind, kRows, kCols>(weights, groups, x + c, stride, sums);
}

/// Adds the block [begin, end) of k to sums[m * kMatmulChunkRows + r].
template <WeightKind kKind, int kRows, int kCols>
void multiply_block(const MatmulCall& call, const BlockRows<kRows>& block, int64_t begin, int64_t end, const float* x,
                    int64_t stride, float* totals) {
  Lanes sums[kRows][kCols];
  for (auto& row : sums) {
    for (Lanes& lanes : row) {
      for (V& part : lanes.part) part = hn::Zero(FloatTag());
    }
  }
  Group<kKind> groups[kRows];
  const uint8_t* rows[kRows];
  if constexpr (is_quantized(kKind)) {
    const int64_t size = call.quantized.format.group_size, first = begin / size;
    for (int64_t c = begin; c < end;) {
      const int64_t g = c / size, piece_end = min_of(end, (g + 1) * size);
      for (int r = 0; r < kRows; ++r) {
        groups[r] = make_group<kKind>(block.inverse[r][g - first], block.minimum[r][g - first]);
        rows[r] = block.row[r] + bytes_of(kKind, c - begin);
      }
      multiply_piece<kKind, kRows, kCols>(rows, groups, x + c, stride, piece_end - c, sums);
      c = piece_end;
    }
  } else {
    for (int r = 0; r < kRows; ++r) rows[r] = block.row[r];
    multiply_piece<kKind, kRows, kCols>(rows, groups, x + begin, stride, end - begin, sums);
  }
  for (int m = 0; m < kCols; ++m) {
    for (int r = 0; r < kRows; ++r) totals[m * kMatmulChunkRows + r] += tree_sum(sums[r][m]);
  }
}

/// All columns of a pass, kTileCols at a time.
template <WeightKind kKind, int kRows>
void multiply_columns(const Pass& pass, const BlockRows<kRows>& block, int64_t begin, int64_t end, float* totals) {
  for (int64_t m = 0; m < pass.cols; m += kTileCols) {
    const float* const x = pass.x + m * pass.stride;
    float* const out = totals + m * kMatmulChunkRows;
    const int64_t left = pass.cols - m;
    if (left == 1) {
      multiply_block<kKind, kRows, 1>(*pass.call, block, begin, end, x, pass.stride, out);
    } else if (left == 2 || kTileCols == 2) {
      multiply_block<kKind, kRows, 2>(*pass.call, block, begin, end, x, pass.stride, out);
    } else if (left == 3) {
      multiply_block<kKind, kRows, kTileCols == 2 ? 1 : 3>(*pass.call, block, begin, end, x, pass.stride, out);
    } else {
      multiply_block<kKind, kRows, kTileCols>(*pass.call, block, begin, end, x, pass.stride, out);
    }
  }
}

// ---- dequantised tiles ----------------------------------------------------------------------------------------------

/// A block of one row in the order of packed x, for groups that no step of 32 straddles.
template <WeightKind kKind>
void decode_row(const MatmulCall& call, const BlockRows<1>& block, int64_t begin, int64_t end, float* tile) {
  const int64_t size = call.quantized.format.group_size, first = begin / size;
  for (int64_t c = begin; c < end;) {
    const int64_t g = c / size, piece_end = min_of(end, (g + 1) * size);
    const Group<kKind> group = make_group<kKind>(block.inverse[0][g - first], block.minimum[0][g - first]);
    for (; c < piece_end; c += kStep) {
      const uint8_t* bytes = block.row[0] + bytes_of(kKind, c - begin);
      uint8_t padded[bytes_of(kKind, kStep)] = {};
      if (c + kStep > piece_end) {
        copy_bytes(padded, bytes, static_cast<size_t>(bytes_of(kKind, piece_end - c)));
        bytes = padded;
      }
      const Step step = decode<kKind>(bytes, group);
      store_lanes(step.first, tile + (c - begin));
      store_lanes(step.second, tile + (c - begin) + kLanes);
    }
    c = piece_end;
  }
}

/// The same for any group size.
void decode_row_of_odd_groups(const MatmulCall& call, int64_t row, int64_t begin, int64_t end, float* tile) {
  const QuantizedMatrix& matrix = call.quantized;
  const FloatTag d;
  const int64_t size = matrix.format.group_size, groups = groups_per_row(matrix.cols, matrix.format);
  const uint8_t* const bytes = at<uint8_t>(call.weights, row * call.row_bytes);
  HWY_ALIGN float natural[kMatmulBlock + kStep] = {};
  float inverse[kLanes], minimum[kLanes];
  for (int64_t c = begin; c < end;) {
    const int64_t g = c / size, piece_end = min_of(end, (g + 1) * size);
    load_params(matrix, row * groups + g, 1, inverse, minimum);
    for (int64_t i = c; i < piece_end; ++i) {
      const int byte = bytes[matrix.format.bits == 4 ? i / 2 : i];
      const int q = matrix.format.bits == 8 ? byte : i % 2 == 0 ? byte >> 4 : byte & 15;
      natural[i - begin] = static_cast<float>(q);
    }
    const V factor = hn::Set(d, inverse[0]), offset = hn::Set(d, minimum[0]);
    for (int64_t i = c - begin; i < piece_end - begin; i += kFloatLanes) {  // past the piece: its elements come later
      hn::StoreU(fused(hn::LoadU(d, natural + i), factor, offset), d, natural + i);
    }
    c = piece_end;
  }
  for (int64_t c = 0; c < end - begin; c += kStep) {
    for (int j = 0; j < kLanes; ++j) {
      tile[c + j] = natural[c + 2 * j + 1];
      tile[c + kLanes + j] = natural[c + 2 * j];
    }
  }
}

// ---- rows of W ------------------------------------------------------------------------------------------------------

bool has_odd_groups(const MatmulCall& call) {
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
      for (int r = 0; r < kRows; ++r) {
        float* const tile = pass.tile + r * kMatmulBlock;
        decoded.row[r] = reinterpret_cast<const uint8_t*>(tile);
        if (odd) {
          decode_row_of_odd_groups(call, row + r, begin, end, tile);
        } else {
          BlockRows<1> block;
          load_block<kKind, 1>(call, row + r, begin, end, block);
          decode_row<kKind>(call, block, begin, end, tile);
        }
      }
      // Tiles are padded to whole steps like x.
      multiply_columns<WeightKind::kFloat32, kRows>(pass, decoded, begin,
                                                    begin + (end - begin + kStep - 1) / kStep * kStep, totals);
      return;
    }
  }
  BlockRows<kRows> block;
  load_block<kKind, kRows>(call, row, begin, end, block);
  multiply_columns<kKind, kRows>(pass, block, begin, end, totals);
}

/// Rows [begin, end) of a chunk that starts at chunk_row, one block of k.
template <WeightKind kKind>
void multiply_chunk(const Pass& pass, RowRange rows, int64_t begin, int64_t end) {
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
  const int64_t stride = matmul_packed_stride(call.k);
  for (int64_t first = 0; first < call.args.m; first += kMatmulPassRows) {
    const int64_t cols = min_of(call.args.m - first, kMatmulPassRows);
    float* const sums = call.workspace + cols * stride;
    const Pass pass{&call, cols, stride, call.workspace, sums, sums + cols * kMatmulChunkRows};
    pack<kKind>(call, first, cols, stride, call.workspace);
    // Few rows of x: one tile at a time, along whole rows of W. Many: all rows of a chunk per block of x.
    const int64_t chunk = cols == 1 ? kVectorRows : cols <= kDecodeInRegisters ? kTileRows : kMatmulChunkRows;
    for (int64_t row = call.rows.begin; row < call.rows.end; row += chunk) {
      const RowRange rows{row, min_of(call.rows.end, row + chunk)};
      for (int64_t i = 0; i < cols * kMatmulChunkRows; ++i) sums[i] = 0.0f;
      for (int64_t begin = 0; begin < call.k; begin += kMatmulBlock) {
        multiply_chunk<kKind>(pass, rows, begin, min_of(call.k, begin + kMatmulBlock));
      }
      finish_chunk(pass, rows, first);
    }
  }
}

void matmul(const MatmulCall& call) {
  switch (call.kind) {
    case WeightKind::kFloat32:
      return matmul_of<WeightKind::kFloat32>(call);
    case WeightKind::kBFloat16:
      return matmul_of<WeightKind::kBFloat16>(call);
    case WeightKind::kFloat16:
      return matmul_of<WeightKind::kFloat16>(call);
    case WeightKind::kInt8:
      return matmul_of<WeightKind::kInt8>(call);
    case WeightKind::kInt4:
      return matmul_of<WeightKind::kInt4>(call);
  }
}

void fill_matmul(KernelTable& table) {
  table.matmul = matmul;
}

}  // namespace HWY_NAMESPACE
}  // namespace deepscale::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace deepscale::kernels {

void fill_matmul_kernels(int64_t target, KernelTable& table) {
  DEEPSCALE_FOR_TARGET(fill_matmul, target)(table);
}

}  // namespace deepscale::kernels
#endif  // HWY_ONCE
