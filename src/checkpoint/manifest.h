// The manifest of a checkpoint: which files belong to it, with checksums by block, and which slice of which tensor
// stands where in them. manifest.json is written last, so a folder that has one was written to its end:
//
//   {"format": "deepscale.checkpoint", "version": 2, "layout": "native", "tag": "global_step10",
//    "files":   [{"name": "rank_0000.safetensors", "bytes": 123456, "block_bytes": 65536, "xxh3":
//    "0123456789abcdef..."}, ...], "tensors": [{"name": "fp32/layer.weight", "dtype": "float32", "shape": [4, 4],
//                 "slices": [[file, first byte in the file, first element of the flattened tensor, elements], ...]}],
//    "info": {...}, "checksum": "..."}
//
// layout "native": tensors are listed, files are safetensors that any tool reads. layout "deepspeed": files only, in
// DeepSpeed's layout. info: what the program wants to know again (world, stage, counters, versions), any JSON object.
// "xxh3": 16 digits for each block. "checksum" is of the text of everything else. Everything a manifest says is checked
// before it is used. Torch-free.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"
#include "checkpoint/block_checksums.h"

namespace deepscale {

inline constexpr char kManifestName[] = "manifest.json";

struct ManifestFile {
  std::string name;  ///< in the checkpoint's folder, without any path
  FileChecksums checksums;
};

/// `numel` elements from `offset` of a flattened tensor stand at byte `begin` of a file.
struct ManifestSlice {
  int file = 0;  ///< index into Manifest::files
  int64_t begin = 0;
  int64_t offset = 0;
  int64_t numel = 0;
};

struct ManifestTensor {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  std::vector<ManifestSlice> slices;  ///< by offset, without overlaps

  [[nodiscard]] int64_t numel() const;
};

struct Manifest {
  std::string layout = "native";
  std::string tag;
  std::vector<ManifestFile> files;
  std::vector<ManifestTensor> tensors;
  std::string info = "{}";  ///< text of a JSON object

  [[nodiscard]] int64_t bytes() const;  ///< of all files
};

/// Throws CheckpointError that names `file` and what is wrong in it: damage, another version, names with paths, slices
/// outside of their file or tensor, overlaps in tensors or files, tensors that are not covered.
/// is_part: of one rank, whose tensors need not be whole.
[[nodiscard]] Manifest parse_manifest(std::string_view text, const std::string& file, bool is_part = false);
/// A checkpoint's folder. Throws CheckpointError when there is no manifest, or as above.
[[nodiscard]] Manifest read_manifest(const std::string& folder);
/// The member "layout" alone, from the first bytes where they hold it: nothing else is read or checked then. Throws as
/// read_manifest.
[[nodiscard]] std::string manifest_layout(const std::string& folder);
[[nodiscard]] std::string manifest_text(const Manifest& manifest);

/// One rank's part of a manifest while the ranks write; joined, slices of a tensor are put in order. Throws
/// CheckpointError when the parts contradict each other.
[[nodiscard]] Manifest join_manifests(const std::vector<Manifest>& parts);

}  // namespace deepscale
