// The weights of a model that only runs forward: matrices in memory or in a file, in the model's dtype or packed, read
// straight from a model folder. Vectors (norms, biases) and position tables stay in memory.
// Threads: one at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "inference/model_folder.h"
#include "inference/packed_weight.h"
#include "memory/file_tier.h"

namespace deepscale {

struct WeightStoreOptions {
  std::string folder;                        ///< of the file; empty: in memory
  std::optional<int64_t> max_resident = {};  ///< elements of matrices in memory nevertheless; nothing: what fits
  at::ScalarType dtype = at::kBFloat16;
  int bits = 16;  ///< 16: the dtype; 8 or 4: packed
  int64_t group_size = 64;
};

class WeightStore {
 public:
  WeightStore(ModelFolder& source, const WeightStoreOptions& options);

  /// Loads a [rows, cols] matrix; the answer names it below. The same name again is the same matrix.
  int matrix(const std::string& name, int64_t rows, int64_t cols);
  /// Loads a tensor that stays in memory.
  at::Tensor resident(const std::string& name, const std::vector<int64_t>& shape);
  /// All weights are loaded: from now on they may be used.
  void finish();

  /// x [..., cols] times the matrix, transposed: [..., rows]. bias [rows] or undefined.
  at::Tensor linear(int matrix, const at::Tensor& x, const at::Tensor& bias = {});
  /// Rows ids [...] of the matrix: [..., cols].
  at::Tensor embedding(int matrix, const at::Tensor& ids);

  [[nodiscard]] int64_t parameters() const { return parameters_; }
  [[nodiscard]] int64_t weight_bytes() const { return weight_bytes_; }
  /// Nothing without a file.
  [[nodiscard]] std::optional<FileTierFacts> file_facts() const;

 private:
  struct Matrix {
    std::string name;
    PackedShape shape;
    at::Tensor value;                 ///< whole while its unit is gathered, or always
    std::shared_ptr<ParamUnit> unit;  ///< null: in memory
  };
  class Use;
  [[nodiscard]] bool packed() const { return options_.bits < 16; }
  void fill(const Matrix& matrix);

  ModelFolder& source_;
  WeightStoreOptions options_;
  std::unique_ptr<FileTier> tier_;  // before the units
  std::vector<Matrix> matrices_;
  std::unique_ptr<Engine> engine_;
  int64_t left_in_memory_ = 0;
  int64_t parameters_ = 0;
  int64_t weight_bytes_ = 0;
};

}  // namespace deepscale
