// What the architectures behind CausalLm share: weights, caches, checks, the loop over layers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "deepscale/inference.h"
#include "inference/decoder.h"
#include "inference/model_folder.h"
#include "inference/weight_store.h"

namespace deepscale {

class DecoderModel : public CausalLm {
 public:
  /// `positions`: tokens that the model can see; `layers` of them have caches.
  DecoderModel(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options);

  at::Tensor forward(const at::Tensor& ids) final;
  void reset() final;
  [[nodiscard]] CausalLmFacts facts() const final;

 protected:
  /// Set by the architecture's constructor, which then calls store().finish().
  struct Sizes {
    int64_t vocabulary = 0, layers = 0, positions = 0;
  };
  Sizes sizes_;

  /// ids [batch, tokens] -> hidden states [batch, tokens, hidden]; `first` is the first token's position.
  virtual at::Tensor embed(const at::Tensor& ids, int64_t first) = 0;
  virtual at::Tensor layer(int64_t index, const at::Tensor& hidden, int64_t first) = 0;
  virtual at::Tensor head(const at::Tensor& hidden) = 0;

  [[nodiscard]] WeightStore& store() { return *store_; }
  [[nodiscard]] const ModelConfig& config() const { return folder_->config(); }
  /// [batch, tokens, heads * size] -> [batch, heads, tokens, size]
  [[nodiscard]] static at::Tensor split_heads(const at::Tensor& x, int64_t heads);
  [[nodiscard]] LayerCache& cache(int64_t layer) { return caches_[layer]; }

 private:
  void check_ids(const at::Tensor& ids) const;

  std::unique_ptr<ModelFolder> folder_;
  std::unique_ptr<WeightStore> store_;
  std::vector<LayerCache> caches_;
  int64_t batch_ = 0;
  int64_t tokens_ = 0;
};

std::unique_ptr<CausalLm> make_llama(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options);
std::unique_ptr<CausalLm> make_opt(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options);

}  // namespace deepscale
