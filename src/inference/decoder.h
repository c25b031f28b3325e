// Parts that decoders share: keys and values of earlier tokens, attention, norms, rotary positions.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>

namespace deepscale {

/// Keys and values of one layer, [batch, heads, capacity, head size], in memory that grows in steps.
class LayerCache {
 public:
  /// Appends keys and values [batch, heads, tokens, head size].
  void append(const at::Tensor& keys, const at::Tensor& values);
  [[nodiscard]] at::Tensor keys() const;    ///< of all tokens so far
  [[nodiscard]] at::Tensor values() const;  ///< likewise
  [[nodiscard]] int64_t tokens() const { return tokens_; }
  /// Forgets all but the first `tokens`.
  void cut_to(int64_t tokens) { tokens_ = std::min(tokens_, tokens); }

 private:
  at::Tensor keys_, values_;
  int64_t tokens_ = 0;
};

/// Causal attention of the last query tokens of a sequence: queries [batch, heads, tokens, head size] are the last
/// tokens of keys and values [batch, kv heads, all tokens, head size]; heads are shared in groups where there are fewer
/// of them. Scores are multiplied by `scale`. Returns [batch, tokens, heads * head size]. (Vaswani et al. 2017, arXiv
/// 1706.03762)
at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, double scale);

/// x / sqrt(mean(x^2) + epsilon) in fp32, rounded to x's dtype, times weight (Zhang and Sennrich 2019, arXiv
/// 1910.07467).
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon);

/// Rotary position embedding (Su et al. 2021, arXiv 2104.09864), halves rotated as Llama's weights expect.
class RotaryTable {
 public:
  RotaryTable() = default;
  RotaryTable(int64_t head_size, double base);
  /// x [batch, heads, tokens, head size], whose first token has position `first`.
  [[nodiscard]] at::Tensor apply(const at::Tensor& x, int64_t first) const;

 private:
  at::Tensor inverse_frequencies_;  // [head size / 2], fp32
};

}  // namespace deepscale
