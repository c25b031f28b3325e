#include "inference/decoder_model.h"

#include <ATen/Functions.h>
#include <c10/core/GradMode.h>
#include <fmt/ranges.h>

#include "base/error.h"

namespace deepscale {
namespace {

at::ScalarType dtype_named(const std::string& name, const std::string& where) {
  if (name == "bfloat16") return at::kBFloat16;
  if (name == "float16") return at::kHalf;
  if (name == "float32") return at::kFloat;
  ds_throw<ConfigError>("{}: dtype \"{}\"; float32, bfloat16 or float16 is expected", where, name);
}

WeightStoreOptions store_options(const ModelConfig& config, const CausalLmOptions& options) {
  DS_CHECK_AS(ConfigError, options.bits == 16 || options.bits == 8 || options.bits == 4,
              "CausalLmOptions.bits is {}: 16, 8 or 4 is expected", options.bits);
  WeightStoreOptions made;
  made.folder = options.weights_folder;
  made.max_resident = options.max_resident;
  made.bits = options.bits;
  made.group_size = options.group_size;
  const std::string stored = config.text("torch_dtype", config.text("dtype", "float32"));
  made.dtype =
      options.dtype.empty() ? dtype_named(stored, config.path()) : dtype_named(options.dtype, "CausalLmOptions");
  return made;
}

}  // namespace

DecoderModel::DecoderModel(std::unique_ptr<ModelFolder> folder, const CausalLmOptions& options)
    : folder_(std::move(folder)),
      store_(std::make_unique<WeightStore>(*folder_, store_options(folder_->config(), options))) {}

void DecoderModel::check_ids(const at::Tensor& ids) const {
  DS_CHECK(ids.dim() == 2 && ids.scalar_type() == at::kLong && ids.is_cpu() && ids.numel() > 0,
           "ids must be int64 [batch, tokens] on the CPU with at least one token, got {} [{}]",
           c10::toString(ids.scalar_type()), fmt::join(ids.sizes(), ", "));
  DS_CHECK(tokens_ == 0 || ids.size(0) == batch_, "ids of {} sequences follow those of {}: call reset() before others",
           ids.size(0), batch_);
  DS_CHECK(tokens_ + ids.size(1) <= sizes_.positions, "{} tokens after {} are more than the model's {} positions",
           ids.size(1), tokens_, sizes_.positions);
  const auto least = ids.min().item<int64_t>(), largest = ids.max().item<int64_t>();
  DS_CHECK(least >= 0 && largest < sizes_.vocabulary, "id {} is outside of 0..{}", least < 0 ? least : largest,
           sizes_.vocabulary - 1);
}

at::Tensor DecoderModel::forward(const at::Tensor& ids) {
  check_ids(ids);
  const c10::NoGradGuard no_grad;
  caches_.resize(static_cast<size_t>(sizes_.layers));
  try {
    at::Tensor hidden = embed(ids, tokens_);
    for (int64_t l = 0; l < sizes_.layers; ++l) hidden = layer(l, hidden, tokens_);
    const at::Tensor logits = head(hidden);
    batch_ = ids.size(0);
    tokens_ += ids.size(1);
    return logits;
  } catch (...) {
    // Layers before the one that failed have these tokens already.
    for (LayerCache& cache : caches_) cache.cut_to(tokens_);
    if (tokens_ == 0) caches_.clear();  // the next batch may have another size
    throw;
  }
}

void DecoderModel::reset() {
  caches_.clear();
  batch_ = tokens_ = 0;
}

at::Tensor DecoderModel::split_heads(const at::Tensor& x, int64_t heads) {
  return x.view({x.size(0), x.size(1), heads, x.size(2) / heads}).transpose(1, 2);
}

CausalLmFacts DecoderModel::facts() const {
  CausalLmFacts facts;
  facts.architecture = config().text("model_type");
  facts.parameters = store_->parameters();
  facts.weight_bytes = store_->weight_bytes();
  facts.checkpoint_bytes = folder_->bytes_read();
  if (const auto file = store_->file_facts()) {
    facts.file_read_bytes = file->read_bytes;
    facts.resident_bytes = file->resident_bytes;
  }
  return facts;
}

std::unique_ptr<CausalLm> CausalLm::open(const std::string& folder, const CausalLmOptions& options) {
  auto files = std::make_unique<ModelFolder>(ModelFolder::open(folder));
  const std::string type = files->config().text("model_type");
  if (type == "llama" || type == "mistral") return make_llama(std::move(files), options);
  if (type == "opt") return make_opt(std::move(files), options);
  ds_throw<ConfigError>("{}: \"model_type\" is \"{}\"; llama, mistral and opt can be served", files->config().path(),
                        type);
}

at::Tensor CausalLm::generate(const at::Tensor& ids, int64_t count) {
  DS_CHECK(count >= 0, "generate: {} tokens were asked for", count);
  const c10::NoGradGuard no_grad;
  reset();
  at::Tensor all = ids;
  at::Tensor next = ids;
  for (int64_t i = 0; i < count; ++i) {
    const at::Tensor logits = forward(next);
    next = logits.select(1, logits.size(1) - 1).argmax(-1, /*keepdim=*/true);
    all = at::cat({all, next}, 1);
  }
  return all;
}

}  // namespace deepscale
