// Reads every byte of a checkpoint and says what is wrong with it. With a manifest: the checksum of every block, and
// that the tensor files hold exactly the slices that it lists. Without one: whether each file can be read and has the
// CRC-32 that it was written with, and whether files of ranks are missing. Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint_kind.h"

namespace deepscale {

struct VerifyOptions {
  int threads = 4;
  /// Called from several threads with the bytes that were read since the last call.
  std::function<void(int64_t bytes)> read = {};
};

struct VerifyReport {
  CheckpointKind kind = CheckpointKind::kNone;
  bool has_manifest = false;
  int64_t bytes = 0;  ///< that were read
  int64_t files = 0;
  int64_t tensors = 0;
  std::vector<std::string> problems;  ///< one line each; empty: intact
  std::vector<std::string> notes;     ///< files that do not belong to it, and what cannot be known
};

/// Bytes that verify_checkpoint() will read, as far as names and sizes tell.
[[nodiscard]] int64_t bytes_to_verify(const std::string& folder);

/// Never throws for what it finds in the folder. Throws CheckpointError for a folder that holds no checkpoint.
[[nodiscard]] VerifyReport verify_checkpoint(const std::string& folder, const VerifyOptions& options);

}  // namespace deepscale
