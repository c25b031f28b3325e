// Tensors of a checkpoint into new files: the weights alone as a model's safetensors files, or everything as a native
// checkpoint whose slices are cut for another number of ranks. Memory is bounded, what was written is read back and
// compared, and nothing has its name before it is complete. Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "checkpoint/tensor_source.h"

namespace deepscale {

/// One safetensors file with these ranges, in this order; a range that is not a whole tensor has one dimension.
/// float_dtype: what floating-point tensors are converted to (rounded to nearest); nothing: as they are. Returns the
/// checksums of what was meant, after reading the file back, and where each range begins. Throws what reading throws,
/// IoError, and CheckpointError when the disk returned something else.
struct WrittenTensors {
  FileChecksums checksums;
  std::vector<int64_t> begins;
};
WrittenTensors write_tensors(TensorSource& source, const std::vector<SourceRange>& ranges, const std::string& path,
                             std::optional<DType> float_dtype, const std::map<std::string, std::string>& metadata,
                             const std::function<void(int64_t bytes)>& written = {});

struct WeightOptions {
  DType dtype = DType::kFloat32;
  int64_t shard_bytes = 5'000'000'000;  ///< of one file; a tensor that is larger is a file of its own
  bool overwrite = false;               ///< weights that are in the folder
  std::function<void(int64_t bytes)> written;
};

struct WeightFiles {
  std::vector<std::string> names;  ///< with the index, if there is one
  int64_t tensors = 0;
  int64_t bytes = 0;  ///< of tensors
};

/// Bytes of all weights in a dtype.
[[nodiscard]] int64_t weight_bytes(const TensorSource& source, DType dtype);

/// model.safetensors, or model-00001-of-0000N.safetensors with model.safetensors.index.json, into a folder, which is
/// made. Parameters with several names are stored once; the others are in the files' metadata. Files are written into
/// FOLDER/.converting and renamed when all are complete, the index last. Throws ConfigError when there are weights
/// already, IoError, and what reading throws.
WeightFiles write_weights(TensorSource& source, const std::string& folder, const WeightOptions& options);

struct ReshardOptions {
  int ranks = 1;
  std::string tag;         ///< of the new checkpoint
  bool overwrite = false;  ///< a checkpoint of this tag, which may be the one that is read
  bool write_latest = true;
  std::function<void(int64_t bytes)> written;
};

/// SAVE_DIR/TAG with the slices of `folder` (native) cut into equal parts for so many ranks; all else is the same.
/// Throws ConfigError, CheckpointError, IoError.
void reshard_checkpoint(const std::string& folder, const std::string& save_dir, const ReshardOptions& options);

/// "5GB", "500 MiB", "1.5gb", "100": bytes. Throws ConfigError naming `option`.
[[nodiscard]] int64_t parse_bytes(const std::string& text, std::string_view option);

}  // namespace deepscale
