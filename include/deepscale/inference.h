// Generating with a Hugging Face model without Python, also with one that does not fit into memory.
//
//   auto model = deepscale::CausalLm::open("/models/llama-2-7b", {.weights_folder = "/local/disk"});
//   at::Tensor ids = model->generate(prompt, 32);   // prompt [batch, tokens], int64
//
// A folder holds config.json and safetensors files (one, or several with model.safetensors.index.json). Architectures:
// "llama" (and what has its layers and names, "mistral" without a sliding window) and "opt". Weights are read straight
// into their places, one matrix at a time; with `weights_folder` they live in a nameless file there (io_uring,
// O_DIRECT) and visit memory a matrix at a time, read ahead; as many as memory has room for stay.
// Arithmetic: as Transformers computes it in the same dtype, within rounding; products with few rows sum in fp32.
// Threads: one at a time per model.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace deepscale {

struct CausalLmOptions {
  std::string weights_folder{};           ///< matrices live in a file here; empty: in memory
  std::optional<int64_t> max_resident{};  ///< elements of them that stay in memory; nothing: what memory has room for
  std::string dtype{};                    ///< "float32", "bfloat16", "float16"; empty: what config.json says
  int bits = 16;                          ///< of matrices: 16 (the dtype), 8 or 4, quantised while they are read
  int64_t group_size = 64;                ///< elements of a row that share a scale
};

struct CausalLmFacts {
  std::string architecture;
  int64_t parameters = 0;        ///< elements of all weights
  int64_t weight_bytes = 0;      ///< as they are held
  int64_t checkpoint_bytes = 0;  ///< read from safetensors files
  int64_t file_read_bytes = 0;   ///< read from the file of weights since the start
  int64_t resident_bytes = 0;    ///< of the file's weights, in memory now
};

class CausalLm {
 public:
  virtual ~CausalLm() = default;
  CausalLm(const CausalLm&) = delete;
  CausalLm& operator=(const CausalLm&) = delete;

  /// Throws ConfigError for a config.json that cannot be served (naming the key), CheckpointError for missing, damaged
  /// or wrongly shaped weights (naming the tensor and the file), IoError for files that cannot be made.
  static std::unique_ptr<CausalLm> open(const std::string& folder, const CausalLmOptions& options = {});

  /// ids [batch, tokens], int64: the tokens that follow those of earlier calls (same batch). Returns logits
  /// [batch, tokens, vocabulary] in the model's dtype. Throws Error for ids out of range, another batch size, or more
  /// tokens than the model has positions.
  virtual at::Tensor forward(const at::Tensor& ids) = 0;
  /// Forgets earlier tokens.
  virtual void reset() = 0;
  /// Starts anew with ids [batch, tokens] and appends the most probable token `count` times: [batch, tokens + count].
  at::Tensor generate(const at::Tensor& ids, int64_t count);
  [[nodiscard]] virtual CausalLmFacts facts() const = 0;

 protected:
  CausalLm() = default;
};

}  // namespace deepscale
