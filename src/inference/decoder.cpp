#include "inference/decoder.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <optional>

namespace deepscale {
namespace {

constexpr int64_t kCacheStep = 128;  // tokens

at::Tensor grown(const at::Tensor& old, const at::Tensor& like, int64_t used, int64_t capacity) {
  at::Tensor larger = at::empty({like.size(0), like.size(1), capacity, like.size(3)}, like.options());
  if (used > 0) larger.narrow(2, 0, used).copy_(old.narrow(2, 0, used));
  return larger;
}

}  // namespace

void LayerCache::append(const at::Tensor& keys, const at::Tensor& values) {
  const int64_t wanted = tokens_ + keys.size(2);
  if (!keys_.defined() || wanted > keys_.size(2)) {
    const int64_t capacity = (wanted + kCacheStep - 1) / kCacheStep * kCacheStep;
    keys_ = grown(keys_, keys, tokens_, capacity);
    values_ = grown(values_, values, tokens_, capacity);
  }
  keys_.narrow(2, tokens_, keys.size(2)).copy_(keys);
  values_.narrow(2, tokens_, keys.size(2)).copy_(values);
  tokens_ = wanted;
}

at::Tensor LayerCache::keys() const {
  return keys_.narrow(2, 0, tokens_);
}

at::Tensor LayerCache::values() const {
  return values_.narrow(2, 0, tokens_);
}

at::Tensor causal_attention(const at::Tensor& queries, const at::Tensor& keys, const at::Tensor& values, double scale) {
  const int64_t batch = queries.size(0), heads = queries.size(1), tokens = queries.size(2), all = keys.size(2);
  std::optional<at::Tensor> mask;
  const bool whole = tokens == all;
  if (!whole && tokens > 1) {
    mask = at::ones({tokens, all}, queries.options().dtype(at::kBool)).tril(all - tokens);
  }
  const at::Tensor out =
      at::scaled_dot_product_attention(queries, keys, values, mask, /*dropout_p=*/0.0,
                                       /*is_causal=*/whole && tokens > 1, scale, /*enable_gqa=*/keys.size(1) != heads);
  return out.transpose(1, 2).reshape({batch, tokens, heads * queries.size(3)});
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon) {
  const at::Tensor wide = x.to(at::kFloat);
  const at::Tensor scaled = wide * at::rsqrt(wide.pow(2).mean({-1}, /*keepdim=*/true) + epsilon);
  return weight * scaled.to(x.scalar_type());
}

RotaryTable::RotaryTable(int64_t head_size, double base) {
  const at::Tensor exponents = at::arange(0, head_size, 2, at::kLong).to(at::kFloat) / static_cast<double>(head_size);
  inverse_frequencies_ = at::reciprocal(at::pow(at::Scalar(base), exponents));
}

at::Tensor RotaryTable::apply(const at::Tensor& x, int64_t first) const {
  const at::Tensor positions = at::arange(first, first + x.size(2), at::kLong).to(at::kFloat);
  const at::Tensor half = at::outer(positions, inverse_frequencies_);
  const at::Tensor angles = at::cat({half, half}, -1);
  const at::Tensor cosines = angles.cos().to(x.scalar_type()), sines = angles.sin().to(x.scalar_type());
  const int64_t middle = x.size(3) / 2;
  const at::Tensor rotated = at::cat({x.narrow(3, middle, x.size(3) - middle).neg(), x.narrow(3, 0, middle)}, -1);
  return x * cosines + rotated * sines;
}

}  // namespace deepscale
