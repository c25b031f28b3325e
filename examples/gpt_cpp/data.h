// Tokens that examples/gpt/data.py has cached, cut into the same windows: random ones for training, fixed ones for
// evaluation.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

/// Inputs and targets, each [windows, block_size] int64; targets are one token ahead.
using Batch = std::pair<at::Tensor, at::Tensor>;

struct TextData {
  at::Tensor train;     ///< [tokens], uint16 or uint32
  at::Tensor held_out;  ///< the same
  int64_t vocab_size = 0;
};

/// folder: the cache folder of one tokenizer (it holds train.npy, held_out.npy, tokenizer.json), or one above it that
/// holds exactly one such folder. Throws std::runtime_error naming what is missing or damaged.
TextData load_text(const std::string& folder);

/// A 1-D array of unsigned 16- or 32-bit integers in NumPy's format.
at::Tensor read_npy(const std::string& path);

/// Random windows: what a rank sees at a micro-step depends on (seed, rank, micro-step) alone.
class TrainingWindows {
 public:
  TrainingWindows(at::Tensor tokens, int64_t block_size, int64_t batch_size, int64_t seed, int rank);
  [[nodiscard]] Batch batch(int64_t micro_step) const;

 private:
  at::Tensor tokens_;
  int64_t block_size_, batch_size_, seed_;
  int rank_;
};

/// Windows spread evenly over the held-out tokens, dealt out to the ranks; the same number of batches on every rank.
/// A batch that only fills up the last round has weight 0.
class EvaluationWindows {
 public:
  EvaluationWindows(at::Tensor tokens, int64_t block_size, int64_t batch_size, int64_t count, int rank, int ranks);
  [[nodiscard]] int64_t batches() const { return static_cast<int64_t>(starts_.size()); }
  [[nodiscard]] Batch batch(int64_t index) const;
  [[nodiscard]] int64_t weight(int64_t index) const { return weights_.at(index); }

 private:
  at::Tensor tokens_;
  int64_t block_size_;
  std::vector<at::Tensor> starts_;
  std::vector<int64_t> weights_;
};
