// Which kind of checkpoint a folder holds, and which folder a user means. Only names and the manifest are looked at.
// Torch-free.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace deepscale {

enum class CheckpointKind : uint8_t {
  kNone,         ///< nothing that is known
  kNative,       ///< manifest.h, layout "native"
  kDeepSpeed,    ///< DeepSpeed's files of one tag, with or without a manifest
  kUniversal,    ///< a universal checkpoint: a folder per parameter
  kSafetensors,  ///< weights of a model: safetensors files, perhaps with an index; also one such file
};

/// "native", "deepspeed", "universal", "safetensors", "nothing known".
[[nodiscard]] std::string_view name_of(CheckpointKind kind);

/// A damaged manifest does not hide the kind. path: a folder, or one .safetensors file.
[[nodiscard]] CheckpointKind checkpoint_kind(const std::string& path);

/// The checkpoint that is meant by `path`: itself when it is one, else the one in it that `tag` names, or the file
/// `latest`. Throws CheckpointError that says which tags there are.
[[nodiscard]] std::string find_checkpoint(const std::string& path, const std::string& tag);

/// The text of `latest` in a folder of tags; empty when there is none.
[[nodiscard]] std::string latest_tag(const std::string& save_dir);

/// The part of a path behind its last separator, and the part before; "." for none.
[[nodiscard]] std::string last_name(const std::string& path);
[[nodiscard]] std::string folder_above(const std::string& path);

}  // namespace deepscale
